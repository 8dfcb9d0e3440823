"""The descriptor socket between a real server and clients that keep to its rules; sessions' ends, the socket's file, a broken daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest

from ckptstore import fd_protocol, sockets
from ckptstore.config import read_settings
from ckptstore.errors import (
    AlreadyRunning,
    ConfigInvalid,
    DaemonUnavailable,
    NotFound,
    Unauthorized,
    WaitTimeout,
)
from ckptstore.fd_messages import FdHello, FdReady, FdSegment, FdWelcome
from ckptstore.wire import API_VERSION
from ckptstore_client.descriptors import DescriptorConnection
from ckptstore_server.fd_server import DescriptorServer
from ckptstore_tiers.memory import SegmentPool
from tests.daemon_process import DaemonProcess
from tests.faults.fd_socket_place import (
    MIB,
    PoolHandler,
    assert_serves,
    greeted,
    handler,
    hello,
    raw,
    sent,
    server,
)

__all__ = ["handler", "server"]

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


def test_a_stopping_server_waits_for_sessions_that_are_ending(tmp_path: Path) -> None:
    ending, go_on = threading.Event(), threading.Event()

    class Slow(PoolHandler):
        def disconnected(self, session: str) -> None:
            ending.set()
            assert go_on.wait(60)
            super().disconnected(session)

    pool = SegmentPool(MIB, 2)
    handler = Slow(pool)
    with DescriptorServer(tmp_path / "fd.sock", handler) as server:
        with DescriptorConnection(server.path) as connection:
            session = connection.session
        assert ending.wait(60)
        threading.Timer(0.2, go_on.set).start()  # while the server closes
    assert handler.ended == [session]
    pool.close()


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


# --- the file that is the socket ---------------------------------------------------------------------------------------------------


def test_only_its_user_may_open_the_socket(server: DescriptorServer) -> None:
    assert server.path.stat().st_mode & 0o777 == 0o600


def refuse_late_chmods(stack: ExitStack) -> None:
    """Rigging for a daemon that makes files open to all, unless it says otherwise when it makes them."""
    os.umask(0)
    stack.enter_context(patch.object(Path, "chmod", lambda path, mode: None))


def test_only_its_user_may_open_the_daemons_other_socket_from_the_first_moment_on(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "home", rigging=refuse_late_chmods) as daemon, daemon.http() as http:
        assert http.get("/v1/hello").status_code == 200
        assert read_settings(home=daemon.home).api_socket.stat().st_mode & 0o777 == 0o600


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
