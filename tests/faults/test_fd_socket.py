"""The descriptor socket between a real server and real clients, well-behaved, broken and hostile."""

from __future__ import annotations

import array
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptstore import fd_protocol, sockets
from ckptstore.errors import (
    AlreadyRunning,
    Busy,
    CkptStoreError,
    ConfigInvalid,
    DaemonUnavailable,
    InvalidInput,
    NotFound,
    TierUnavailable,
    Unauthorized,
    VersionMismatch,
    WaitTimeout,
    from_wire,
)
from ckptstore.fd_messages import FdHello, FdIngest, FdOpen, FdReady, FdSegment, FdWelcome
from ckptstore.wire import API_VERSION, Message
from ckptstore_client.descriptors import DescriptorConnection
from ckptstore_server.fd_server import DescriptorServer
from ckptstore_tiers.memory import SegmentPool

MIB = 1 << 20


class PoolHandler:
    """What the daemon does, over a real pool, without a catalog."""

    def __init__(self, pool: SegmentPool) -> None:
        self.pool = pool
        self.live: dict[str, tuple[int, int]] = {}
        self.ended: list[str] = []
        self.changed = threading.Condition()
        self.ingested: dict[str, bytes] = {}
        self.go_on = threading.Event()
        self.go_on.set()

    def connected(self, session: str, pid: int, uid: int) -> None:
        with self.changed:
            self.live[session] = (pid, uid)
            self.changed.notify_all()

    def disconnected(self, session: str) -> None:
        self.pool.owner_gone(session)
        with self.changed:
            self.live.pop(session)
            self.ended.append(session)
            self.changed.notify_all()

    def segment(self, session: str, message: FdSegment) -> tuple[FdReady, int | None]:
        segment = self.pool.lent(message.segment_id, session)
        assert segment.wait_prefaulted(60)  # as the daemon does: small pages that are collapsed later are unmapped in the client
        return FdReady(capacity_bytes=segment.capacity_bytes, generation=segment.generation), segment.duplicate()

    def open(self, session: str, message: FdOpen) -> tuple[FdReady, int | None]:
        if message.tier == "bug":
            raise ValueError("a bug in the daemon")
        if message.tier == "long":
            raise TierUnavailable("x" * (8 << 20))
        if message.tier == "none":
            return FdReady(), None
        segment = self.pool.find(message.object_id)
        if segment is None:
            raise NotFound("no such object", subject=message.object_id, tier=message.tier)
        return FdReady(size_bytes=segment.size_bytes), segment.read_only_fd()

    def ingest(self, session: str, message: FdIngest, fd: int) -> tuple[FdReady, int | None]:
        assert self.go_on.wait(60)
        self.ingested[message.name] = os.pread(fd, message.size_bytes, 0)
        return FdReady(size_bytes=message.size_bytes), None

    def wait_for(self, true: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(true, 60)


@pytest.fixture
def handler() -> Iterator[PoolHandler]:
    pool = SegmentPool(256 * MIB, 2)
    yield PoolHandler(pool)
    pool.close()


@pytest.fixture
def server(tmp_path: Path, handler: PoolHandler) -> Iterator[DescriptorServer]:
    with DescriptorServer(tmp_path / "fd.sock", handler) as server:
        yield server


@pytest.fixture
def impatient_server(tmp_path: Path, handler: PoolHandler) -> Iterator[DescriptorServer]:
    with DescriptorServer(tmp_path / "impatient.sock", handler, send_timeout_s=0.5, line_timeout_s=0.5) as server:
        yield server


def raw(server: DescriptorServer) -> socket.socket:
    """A connection for somebody who does not keep to the protocol."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(60)
    connection.connect(os.fspath(server.path))
    return connection


def greeted(server: DescriptorServer) -> socket.socket:
    connection = raw(server)
    fd_protocol.send(connection, FdHello(api=API_VERSION, pid=os.getpid()))
    document, _ = fd_protocol.receive(connection)
    assert fd_protocol.read_as(document, FdWelcome).session
    return connection


def assert_hung_up(connection: socket.socket) -> CkptStoreError | None:
    """The server ends the connection; what it said before that."""
    data = b""
    with connection:
        try:
            while chunk := connection.recv(1 << 16):
                data += chunk
        except ConnectionResetError:
            pass  # bytes of ours were left unread: it hung up all the same
    return error_in(json.loads(data)) if data else None


def error_in(document: dict[str, object]) -> CkptStoreError:
    return from_wire(document["error"])


def assert_serves(server: DescriptorServer, handler: PoolHandler) -> None:
    """A well-behaved client gets a segment, writes, and the daemon sees it."""
    with DescriptorConnection(server.path) as connection:
        segment = handler.pool.acquire(connection.session, MIB, timeout_s=0)
        connection.segment(segment.segment_id).view[:5] = b"bytes"
        assert bytes(segment.view[:5]) == b"bytes"


# --- a client that keeps to the rules ----------------------------------------------------------------------------------------------


def test_what_a_client_writes_the_daemon_sees(server: DescriptorServer, handler: PoolHandler) -> None:
    assert_serves(server, handler)


def test_the_daemon_knows_the_clients_process_and_user(server: DescriptorServer, handler: PoolHandler) -> None:
    with DescriptorConnection(server.path) as connection:
        handler.wait_for(lambda: handler.live.get(connection.session) == (os.getpid(), os.getuid()))


def test_a_segment_is_mapped_once_and_ahead(server: DescriptorServer, handler: PoolHandler) -> None:
    with DescriptorConnection(server.path) as connection:
        segment = handler.pool.acquire(connection.session, 5 * MIB, timeout_s=0)
        mapped = connection.segment(segment.segment_id)
        assert connection.segment(segment.segment_id) is mapped
        assert mapped.capacity_bytes == segment.capacity_bytes
        assert resident_at(mapped.address) >= mapped.capacity_bytes


def resident_at(address: int) -> int:
    inside = False
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        first = line.split(" ", 1)[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    return 0


def test_a_replica_is_read_through_a_read_only_descriptor(server: DescriptorServer, handler: PoolHandler) -> None:
    pool = handler.pool
    segment = pool.acquire("earlier client", MIB, timeout_s=0)
    segment.view[:5] = b"saved"
    pool.hold(segment.segment_id, segment.generation)
    pool.keep_as_replica(segment, "object", 5)
    with DescriptorConnection(server.path) as connection:
        opened = connection.open("object", "memory")
        assert os.pread(opened.fd, opened.ready.size_bytes, 0) == b"saved"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(opened.fd, b"x", 0)
        assert not os.get_inheritable(opened.fd)
        os.close(opened.fd)
        with pytest.raises(NotFound):
            connection.open("other", "memory")


def test_a_file_is_ingested_through_its_descriptor(server: DescriptorServer, handler: PoolHandler, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    with DescriptorConnection(server.path) as connection, file.open("rb") as source:
        assert connection.ingest("attempt", "a/b", source.fileno(), 7).size_bytes == 7
    assert handler.ingested == {"a/b": b"content"}


def test_threads_share_one_connection(server: DescriptorServer, handler: PoolHandler) -> None:
    with DescriptorConnection(server.path) as connection, ThreadPoolExecutor(4) as threads:
        segment = handler.pool.acquire(connection.session, MIB, timeout_s=0)

        def ask(number: int) -> bool:
            with pytest.raises(NotFound, match=f"object-{number} "):
                connection.open(f"object-{number}", "memory")
            return connection.segment(segment.segment_id).segment_id == segment.segment_id

        assert all(threads.map(ask, range(50)))


def test_no_descriptor_stays_open_on_either_side(server: DescriptorServer, handler: PoolHandler) -> None:
    assert_serves(server, handler)
    handler.wait_for(lambda: not handler.live)
    handler.pool.give_back(0)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        assert_serves(server, handler)
        handler.wait_for(lambda: not handler.live)
    handler.pool.give_back(0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- the end of a session ----------------------------------------------------------------------------------------------------------


def test_a_clients_death_is_noticed_and_its_slots_are_freed(server: DescriptorServer, handler: PoolHandler) -> None:
    script = (
        "import sys, os, signal, pathlib\n"
        "from ckptstore_client.descriptors import DescriptorConnection\n"
        "c = DescriptorConnection(pathlib.Path(sys.argv[1])); print(c.session, flush=True); sys.stdin.read()"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", script, server.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    session = client.stdout.readline().strip()
    handler.pool.acquire(session, MIB, timeout_s=0)
    client.send_signal(signal.SIGKILL)
    handler.wait_for(lambda: handler.ended == [session])
    assert handler.pool.usage()["lent_bytes"] == 0
    client.communicate()


def test_a_forked_child_does_not_keep_its_parents_session_alive(server: DescriptorServer, handler: PoolHandler) -> None:
    """A data loader's worker inherits the socket; when the trainer dies, the daemon must notice although the worker lives on."""
    with DescriptorConnection(server.path) as connection:
        session = connection.session
        told, tell = os.pipe()
        end, keep = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(keep)
            try:
                connection.open("object", "memory")
                os.write(tell, b"no error")
            except DaemonUnavailable as error:
                os.write(tell, (error.hint or "").encode())
            os.read(end, 1)  # lives until the parent has seen the session end
            os._exit(0)
        assert b"forked" in os.read(told, 100)
        with pytest.raises(NotFound):
            connection.open("object", "memory")
    handler.wait_for(lambda: handler.ended == [session])
    os.close(keep)
    assert os.waitpid(child, 0)[1] == 0
    for fd in (told, tell, end):
        os.close(fd)


STEPS: dict[str, Callable[[DescriptorServer, PoolHandler], socket.socket]] = {
    "after_connect": lambda server, handler: raw(server),
    "in_hello": lambda server, handler: sent(raw(server), b'{"op": "hel'),
    "before_the_welcome_is_read": lambda server, handler: sent(raw(server), hello()),
    "after_hello": lambda server, handler: greeted(server),
    "in_a_request": lambda server, handler: sent(greeted(server), b'{"op": "segm'),
    "before_an_answer_is_read": lambda server, handler: sent(greeted(server), b'{"op":"open","object_id":"o","tier":"memory"}\n'),
    "before_a_descriptor_is_read": lambda server, handler: asked_for_a_segment(server, handler),
}


def hello() -> bytes:
    return FdHello(api=API_VERSION, pid=1).model_dump_json().encode() + b"\n"


def sent(connection: socket.socket, data: bytes) -> socket.socket:
    connection.sendall(data)
    return connection


def asked_for_a_segment(server: DescriptorServer, handler: PoolHandler) -> socket.socket:
    connection = raw(server)
    fd_protocol.send(connection, FdHello(api=API_VERSION, pid=1))
    document, _ = fd_protocol.receive(connection)
    segment = handler.pool.acquire(str(document["session"]), MIB, timeout_s=0)
    fd_protocol.send(connection, FdSegment(segment_id=segment.segment_id))
    return connection


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_a_client_that_hangs_up_at_any_step_harms_only_itself(
    server: DescriptorServer, handler: PoolHandler, step: Callable[[DescriptorServer, PoolHandler], socket.socket]
) -> None:
    step(server, handler).close()
    assert_serves(server, handler)
    handler.wait_for(lambda: not handler.live)
    assert handler.pool.usage()["lent_bytes"] == 0


def test_a_stopping_server_ends_its_clients_sessions(tmp_path: Path, handler: PoolHandler) -> None:
    server = DescriptorServer(tmp_path / "fd.sock", handler)
    server.start()
    connection = DescriptorConnection(server.path)
    server.close()
    assert handler.ended == [connection.session]
    with pytest.raises(DaemonUnavailable) as caught:
        connection.open("object", "memory")
    assert "connect again" in (caught.value.hint or "")
    assert not connection.is_open
    assert not server.path.exists()


# --- hostile clients ---------------------------------------------------------------------------------------------------------------


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


# --- the file that is the socket ---------------------------------------------------------------------------------------------------


def test_only_its_user_may_open_the_socket(server: DescriptorServer) -> None:
    assert server.path.stat().st_mode & 0o777 == 0o600


def test_a_live_socket_is_never_replaced_and_a_stale_one_is(server: DescriptorServer, handler: PoolHandler) -> None:
    with pytest.raises(AlreadyRunning):
        DescriptorServer(server.path, handler).start()
    assert_serves(server, handler)
    stale = server.path.with_name("stale.sock")
    abandoned = sockets.listen(stale)
    abandoned.close()
    assert stale.is_socket()
    with DescriptorServer(stale, handler) as second:
        assert_serves(second, handler)


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path, handler: PoolHandler) -> None:
    (tmp_path / "fd.sock").write_text("precious")
    with pytest.raises(ConfigInvalid):
        DescriptorServer(tmp_path / "fd.sock", handler).start()
    assert (tmp_path / "fd.sock").read_text() == "precious"


def test_a_closing_server_leaves_its_successors_socket_alone(tmp_path: Path, handler: PoolHandler) -> None:
    first = DescriptorServer(tmp_path / "fd.sock", handler)
    first.start()
    first.path.unlink()
    with DescriptorServer(tmp_path / "fd.sock", handler) as second:
        first.close()
        assert_serves(second, handler)


@pytest.fixture
def long_home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / ("long" * 30)
    home.mkdir()
    yield home
    folder = sockets.socket_path(home, "x").parent
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()


def test_a_home_with_a_long_path_has_its_sockets_in_a_short_private_folder(long_home: Path, handler: PoolHandler) -> None:
    path = sockets.socket_path(long_home, "fd.sock")
    assert len(os.fsencode(path)) <= 107
    assert sockets.socket_path(long_home / "." / ".." / long_home.name, "fd.sock") == path
    assert sockets.socket_path(long_home.parent, "fd.sock") == long_home.parent / "fd.sock"
    with DescriptorServer(path, handler) as server:
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert_serves(server, handler)


def test_a_home_of_any_mode_directly_under_tmp_is_used_as_it_is(handler: PoolHandler) -> None:
    with tempfile.TemporaryDirectory(prefix="ckptstore-", dir="/tmp") as home:
        Path(home).chmod(0o755)
        with DescriptorServer(sockets.socket_path(Path(home), "fd.sock"), handler) as server:
            assert server.path.parent == Path(home)
            assert_serves(server, handler)


@pytest.mark.parametrize("trap", ["open_to_others", "symlink", "file"])
def test_a_short_folder_that_others_prepared_is_refused(long_home: Path, tmp_path: Path, trap: str) -> None:
    folder = sockets.socket_path(long_home, "fd.sock").parent
    if trap == "open_to_others":
        folder.mkdir()
        folder.chmod(0o777)
    elif trap == "symlink":
        (tmp_path / "target").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "target")
    else:
        folder.write_text("")
    try:
        with pytest.raises(Unauthorized):
            sockets.socket_path(long_home, "fd.sock")
        with pytest.raises(Unauthorized):
            sockets.claim(folder / "fd.sock")
    finally:
        folder.rmdir() if trap == "open_to_others" else folder.unlink()


# --- a daemon that breaks the rules ------------------------------------------------------------------------------------------------


def test_without_a_daemon_the_error_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnavailable) as caught:
        DescriptorConnection(tmp_path / "fd.sock")
    assert "ckptstore serve" in (caught.value.hint or "")
    sockets.listen(tmp_path / "fd.sock").close()
    with pytest.raises(DaemonUnavailable):
        DescriptorConnection(tmp_path / "fd.sock")


def test_a_slow_answer_is_a_timeout_and_ends_the_session(server: DescriptorServer, handler: PoolHandler, tmp_path: Path) -> None:
    handler.go_on.clear()
    (tmp_path / "file").write_bytes(b"x")
    with DescriptorConnection(server.path) as connection, (tmp_path / "file").open("rb") as source:
        with pytest.raises(WaitTimeout):
            connection.ingest("attempt", "name", source.fileno(), 1, timeout_s=0.05)
        assert not connection.is_open
        handler.go_on.set()
    handler.wait_for(lambda: len(handler.ended) == 1)


ANSWERS = {
    "hangs_up": b"",
    "half_a_line": b'{"size_by',
    "garbage": b"\x00\x01\n",
    "another_message": b'{"session": "x"}\n',
    "no_descriptor": FdReady(capacity_bytes=10).model_dump_json().encode() + b"\n",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_that_makes_no_sense_is_an_unavailable_daemon(tmp_path: Path, answer: bytes) -> None:
    listener = sockets.listen(tmp_path / "fd.sock")

    def play_daemon() -> None:
        peer, _ = listener.accept()
        with peer:
            fd_protocol.receive(peer)
            fd_protocol.send(peer, FdWelcome(session="s"))
            fd_protocol.receive(peer)
            peer.sendall(answer)

    daemon = threading.Thread(target=play_daemon)
    daemon.start()
    with listener, DescriptorConnection(tmp_path / "fd.sock") as connection:
        with pytest.raises(DaemonUnavailable) as caught:
            connection.segment("segment")
        assert caught.value.hint
        assert not connection.is_open
        daemon.join(60)


# --- the framing -------------------------------------------------------------------------------------------------------------------


class Long(Message):
    text: str


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    one.settimeout(60)
    other.settimeout(60)
    yield one, other
    one.close()
    other.close()


def test_a_long_message_and_its_descriptors_arrive_together(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    message = Long(text="é\n" * 200_000)
    read, write = os.pipe()
    sender = threading.Thread(target=fd_protocol.send, args=(one, message, [read, write]))
    sender.start()
    document, fds = fd_protocol.receive(other, 8 << 20, fd_limit=2)
    sender.join(60)
    assert fd_protocol.read_as(document, Long) == message
    os.write(fds[1], b"through")
    assert os.read(fds[0], 7) == b"through"
    assert not any(os.get_inheritable(fd) for fd in fds)
    fd_protocol.close_all([read, write, *fds])


def test_a_message_may_come_byte_by_byte(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    line = Long(text="x").model_dump_json().encode() + b"\n"
    sender = threading.Thread(target=lambda: [one.send(line[i : i + 1]) for i in range(len(line))])
    sender.start()
    assert fd_protocol.receive(other) == ({"text": "x"}, [])
    sender.join(60)
    assert other.gettimeout() == 60


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_a_message_has_a_greatest_length(pair: tuple[socket.socket, socket.socket], excess: int) -> None:
    one, other = pair
    line = Long(text="x" * 100).model_dump_json().encode() + b"\n"
    one.sendall(line)
    if excess > 0:
        with pytest.raises(InvalidInput, match="longer"):
            fd_protocol.receive(other, len(line) - excess)
    else:
        assert fd_protocol.receive(other, len(line) - excess)[0]["text"] == "x" * 100


def test_nothing_to_read_in_time_is_a_timeout_and_a_hang_up_is_not(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    other.settimeout(0.01)
    with pytest.raises(TimeoutError):
        fd_protocol.receive(other)
    one.close()
    with pytest.raises(ConnectionError):
        fd_protocol.receive(other)


PIECES = st.binary(max_size=40) | st.sampled_from([b"{", b"}", b"\n", b'"text":', b'"x"', b"[", b"null", b"1e999", b"NaN"])


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=12), st.integers(0, 3))
def test_whatever_bytes_arrive_only_the_promised_errors_come_out(parts: list[bytes], fd_count: int) -> None:
    one, other = socket.socketpair()
    with one, other, open("/dev/null", "rb") as attached:
        one.sendall(b"".join(parts))
        rights = array.array("i", [attached.fileno()] * fd_count)
        one.sendmsg([b"\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fd_count else [])
        one.close()
        before = descriptors_of("/dev/null")
        try:
            document, fds = fd_protocol.receive(other, 300, fd_limit=1)
            fd_protocol.close_all(fds)
            assert isinstance(document, dict)
        except (InvalidInput, ConnectionError):
            pass
        assert descriptors_of("/dev/null") == before


def descriptors_of(target: str) -> set[str]:
    """This process's descriptors of one file: others come and go with its threads."""
    found = set()
    for place in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(place.readlink()) == target:
                found.add(place.name)
    return found
