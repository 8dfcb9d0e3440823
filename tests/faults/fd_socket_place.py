"""A descriptor server over a real pool, and raw connections to it; each test module imports the fixtures that it uses."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptstore import fd_protocol
from ckptstore.errors import (
    CkptStoreError,
    NotFound,
    TierUnavailable,
    from_wire,
)
from ckptstore.fd_messages import FdHello, FdIngest, FdOpen, FdReady, FdSegment, FdWelcome
from ckptstore.wire import API_VERSION
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

    def answered(self, session: str) -> None:
        pass

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


def hello() -> bytes:
    return FdHello(api=API_VERSION, pid=1).model_dump_json().encode() + b"\n"


def sent(connection: socket.socket, data: bytes) -> socket.socket:
    connection.sendall(data)
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


def descriptors_of(target: str) -> set[str]:
    """This process's descriptors of one file: others come and go with its threads."""
    found = set()
    for place in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(place.readlink()) == target:
                found.add(place.name)
    return found
