"""Clients of the descriptor socket that are hostile, broken or too many: each harms itself alone."""

from __future__ import annotations

import array
import contextlib
import json
import os
import resource
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore import fd_protocol
from ckptstore.errors import (
    Busy,
    CkptStoreError,
    DaemonUnavailable,
    InvalidInput,
    NotFound,
    Unauthorized,
    VersionMismatch,
)
from ckptstore.fd_messages import FdHello
from ckptstore.wire import API_VERSION
from ckptstore_client.descriptors import DescriptorConnection
from ckptstore_server.fd_server import DescriptorServer
from tests.faults.fd_socket_place import (
    MIB,
    PoolHandler,
    assert_hung_up,
    assert_serves,
    error_in,
    greeted,
    handler,
    hello,
    impatient_server,
    raw,
    sent,
    server,
)

__all__ = ["handler", "impatient_server", "server"]


def test_another_sessions_segment_is_not_found(server: DescriptorServer, handler: PoolHandler) -> None:
    with DescriptorConnection(server.path) as one, DescriptorConnection(server.path) as other:
        segment = handler.pool.acquire(one.session, MIB, timeout_s=0)
        with pytest.raises(NotFound):
            other.segment(segment.segment_id)
        assert one.segment(segment.segment_id).capacity_bytes == segment.capacity_bytes
        handler.pool.hold(segment.segment_id, segment.generation)
    with DescriptorConnection(server.path) as late, pytest.raises(NotFound):
        late.segment(segment.segment_id)


def test_ten_megabytes_of_garbage_end_one_connection(server: DescriptorServer, handler: PoolHandler) -> None:
    for connection in (raw(server), greeted(server)):
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"\xff{[" * (10 * MIB // 3))
        error = assert_hung_up(connection)
        assert error is None or isinstance(error, InvalidInput)
    assert_serves(server, handler)


BAD_LINES = {
    "no_json": b"hello\n",
    "no_object": b"[1, 2]\n",
    "no_utf8": b'{"op": "\xff"}\n',
    "deep": b"[" * 200_000 + b"\n",
    "long_number": b'{"op": ' + b"9" * 10_000 + b"}\n",
    "empty_line": b"\n",
    "two_at_once": b'{"op":"open","object_id":"o","tier":"memory"}\n' * 2,
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_line_that_is_no_message_ends_the_connection_with_an_error(
    server: DescriptorServer, handler: PoolHandler, line: bytes
) -> None:
    error = assert_hung_up(sent(greeted(server), line))
    assert isinstance(error, InvalidInput)
    assert_serves(server, handler)


BAD_REQUESTS = {
    "no_operation": {},
    "unknown_operation": {"op": "format"},
    "name_of_another_method": {"op": "disconnected"},
    "operation_of_a_wrong_type": {"op": ["segment"]},
    "missing_field": {"op": "segment"},
    "unknown_field": {"op": "segment", "segment_id": "x", "owner": "root"},
    "wrong_type": {"op": "open", "object_id": 7, "tier": None},
    "ingest_without_a_file": {"op": "ingest", "attempt_id": "a", "name": "n", "size_bytes": 1},
    "hello_again": {"op": "hello", "api": API_VERSION, "pid": 1},
}


@pytest.mark.parametrize("request_", BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_a_request_that_breaks_a_rule_is_refused_by_name(server: DescriptorServer, request_: dict[str, object]) -> None:
    with greeted(server) as connection:
        for _ in range(2):  # the stream is in step, so the connection goes on
            connection.sendall(json.dumps(request_).encode() + b"\n")
            document, fds = fd_protocol.receive(connection)
            assert isinstance(error_in(document), InvalidInput)
            assert fds == []


def test_descriptors_that_nobody_asked_for_are_closed(server: DescriptorServer, handler: PoolHandler) -> None:
    assert_serves(server, handler)
    handler.wait_for(lambda: not handler.live)
    handler.pool.give_back(0)
    before = len(list(Path("/proc/self/fd").iterdir()))
    read, write = os.pipe()
    line = b'{"op":"segment","segment_id":"x"}\n'
    for count, ends in ((1, False), (2, True), (200, True)):
        connection = greeted(server)
        connection.sendmsg([line], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write] * count))])
        if ends:
            assert isinstance(assert_hung_up(connection), InvalidInput)
        else:
            with connection:
                assert isinstance(error_in(fd_protocol.receive(connection)[0]), InvalidInput)
        handler.wait_for(lambda: not handler.live)
    with raw(server) as connection:
        connection.sendmsg([hello()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write]))])
        assert isinstance(assert_hung_up(connection), InvalidInput)
    os.close(write)
    assert os.read(read, 1) == b"", "the pipe's end is seen only once every copy of its other end is closed"
    os.close(read)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_client_that_never_reads_is_dropped(
    server: DescriptorServer, impatient_server: DescriptorServer, handler: PoolHandler
) -> None:
    connection = sent(greeted(impatient_server), b'{"op":"open","object_id":"o","tier":"long"}\n')
    handler.wait_for(lambda: len(handler.ended) == 1)
    connection.close()
    assert_serves(server, handler)


def test_a_line_that_drips_is_dropped(server: DescriptorServer, impatient_server: DescriptorServer, handler: PoolHandler) -> None:
    connection = sent(greeted(impatient_server), b'{"op":')
    assert assert_hung_up(connection) is None
    assert_serves(server, handler)


def test_another_version_is_refused_with_a_hint(server: DescriptorServer) -> None:
    with raw(server) as connection:
        fd_protocol.send(connection, FdHello(api=API_VERSION + 1, pid=1))
        error = assert_hung_up(connection)
    assert isinstance(error, VersionMismatch)
    assert "ckptstore stop" in (error.hint or "")


def test_a_bug_in_the_daemon_costs_one_connection(
    server: DescriptorServer, handler: PoolHandler, caplog: pytest.LogCaptureFixture
) -> None:
    with DescriptorConnection(server.path) as connection:
        with pytest.raises(CkptStoreError, match="a fault in the daemon"):
            connection.open("object", "bug")
        with pytest.raises(DaemonUnavailable):
            connection.open("object", "memory")
    assert "a bug in the daemon" in caplog.text
    assert_serves(server, handler)


def test_too_many_clients_are_told_so(tmp_path: Path, handler: PoolHandler) -> None:
    with DescriptorServer(tmp_path / "fd.sock", handler, connection_limit=2) as server:
        first, second = DescriptorConnection(server.path), DescriptorConnection(server.path)
        with pytest.raises(Busy, match="2 clients"):
            DescriptorConnection(server.path)
        first.close()
        handler.wait_for(lambda: len(handler.live) == 1)
        DescriptorConnection(server.path).close()
        second.close()


def test_a_daemon_out_of_descriptors_serves_again_once_it_has_some(server: DescriptorServer, handler: PoolHandler) -> None:
    """The limit is lowered to the standard streams, so that accept fails in the server, which is in this process."""
    first, waiting = (socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2))
    waiting.settimeout(60)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        first.connect(os.fspath(server.path))  # an accept that waits already has its descriptor: this connection may take it
        waiting.connect(os.fspath(server.path))
        waiting.sendall(hello())
        waiting.settimeout(0.3)
        with pytest.raises(TimeoutError):
            waiting.recv(1, socket.MSG_PEEK)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    waiting.settimeout(60)
    assert fd_protocol.receive(waiting)[0]["session"]
    first.close()
    waiting.close()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_another_user_is_refused(open_folder: Path, handler: PoolHandler) -> None:
    """As root, by a real process of another user; otherwise this user is the other one."""
    other = 65534 if os.getuid() == 0 else os.getuid()
    allowed = frozenset({0}) if os.getuid() else None
    script = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(10000).decode())"
    with DescriptorServer(open_folder / "fd.sock", handler, allowed_uids=allowed) as server:
        server.path.chmod(0o666)
        said = subprocess.run(["python3", "-c", script, server.path], user=other, stdout=subprocess.PIPE, check=True, cwd="/")
        assert isinstance(error_in(json.loads(said.stdout)), Unauthorized)
        assert handler.live == {}
