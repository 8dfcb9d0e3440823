"""The client's end of the descriptor socket: a session, its segments mapped and ready to copy into, and replicas to read from.

The connection is the session: the daemon takes its end as this process's death, so it stays open for life. After a fork the child has
none of it: the inherited socket is closed there at once (or the parent's death would go unnoticed) and every call raises. Mappings are
kept per segment, since the daemon lends the same few again and again, and pages that are present but not yet mapped here cost 0.25 s
per GiB at the first copy: `segment` maps them ahead, outside the interpreter lock.

Any thread; one request at a time. An ingest blocks the others until its file is durable: use a connection of its own for each one that
should run beside them. A request that fails half way leaves the stream out of step: the connection is closed, the session is over.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from ckptstore import fd_protocol
from ckptstore.errors import CkptStoreError, DaemonUnavailable, InvalidInput, Unauthorized, VersionMismatch, WaitTimeout, from_wire
from ckptstore.fd_messages import (
    FdAcquire,
    FdAttempt,
    FdFollow,
    FdHandOver,
    FdHello,
    FdIngest,
    FdOpen,
    FdOpened,
    FdReady,
    FdRelease,
    FdSegment,
    FdWelcome,
)
from ckptstore.tree_messages import FdFile, FdLook, FdLooked, FdNeed, FdOpenFile, TreeInfo
from ckptstore.wire import API_VERSION, AttemptOpened, HandOver, Message, OpenAttempt, SegmentGrant
from ckptstore_tiers.prefault import prefault
from ckptstore_tiers.shared_mapping import map_shared
from ckptstore_tiers.sources import address_of

Said = TypeVar("Said", FdReady, FdAttempt, FdFile, FdLooked)

#: What to do about a daemon of another version.
RESTART = "restart the daemon from here: `ckptstore stop`, then `ckptstore serve` if it is not started by itself"
#: More than any owner has slots at once; an older mapping belongs to a segment that the daemon has given back.
_KEPT_MAPPINGS = 16


class MappedSegment:
    """A lent segment in this process's memory, writable and shared with the daemon."""

    def __init__(self, segment_id: str, fd: int) -> None:
        """Maps the whole of `fd`, which stays the caller's."""
        self.segment_id = segment_id
        self.capacity_bytes = os.fstat(fd).st_size
        try:
            self.view = map_shared(fd, self.capacity_bytes, advice=(mmap.MADV_HUGEPAGE,))
        except OSError as error:
            raise CkptStoreError(str(error), operation="map segment", subject=segment_id, hint="raise `ulimit -v`") from error
        self.address = address_of(self.view)

    def populate(self, size_bytes: int | None = None) -> None:
        """Map the pages of the first `size_bytes` ahead of the copy. Without memory for them, the copy itself will tell."""
        end = self.capacity_bytes if size_bytes is None else min(size_bytes, self.capacity_bytes)
        prefault(self.view[:end])


@dataclass(frozen=True)
class OpenedReplica:
    """`fd` is read-only, and the caller's to close."""

    fd: int
    ready: FdReady


class DescriptorConnection:
    """Connects at once. DaemonUnavailable: nobody answers, or the daemon hung up; Unauthorized: it serves another user."""

    def __init__(self, path: Path, timeout_s: float = 30.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._owner_pid = os.getpid()
        self._segments: OrderedDict[str, MappedSegment] = OrderedDict()
        self._socket: socket.socket | None = self._connect()
        _live.add(self)
        try:
            self.session = self._greet()
        except BaseException:
            self.close()
            raise

    # --- what a session can ask ----------------------------------------------------------------------------------------------

    def acquire(self, size_bytes: int, opens: OpenAttempt | None = None) -> SegmentGrant:
        """A free slot of this session's, at once; Busy if there is none. The attempt that it `opens` is joined meanwhile (`opened`)."""
        with self._lock:
            ready, _ = self._ask(FdAcquire(size_bytes=size_bytes, opens=opens), (), self._timeout_s)
        return SegmentGrant(segment_id=ready.segment_id, generation=ready.generation, capacity_bytes=ready.capacity_bytes)

    def opened(self, grant: SegmentGrant) -> AttemptOpened:
        """What came of the attempt that was named when the slot was acquired. WaitTimeout: it is not known yet."""
        with self._lock:
            question = FdOpened(segment_id=grant.segment_id, generation=grant.generation)
            said = self._said(FdAttempt, question, (), self._timeout_s)
            if said.opened is None:
                raise self._broken("the daemon's answer does not say what attempt was opened", None)
            return said.opened

    def release(self, grant: SegmentGrant, why: str = "") -> None:
        """Give an acquired slot back; `why` is for the other ranks of an attempt that it was opened with."""
        with self._lock:
            self._ask(FdRelease(segment_id=grant.segment_id, generation=grant.generation, why=why), (), self._timeout_s)

    def hand_over(self, attempt_id: str, rank: int, slot: HandOver) -> None:
        """Make the slot's bytes the daemon's."""
        with self._lock:
            self._ask(FdHandOver(attempt_id=attempt_id, rank=rank, slot=slot), (), self._timeout_s)

    def segment(self, segment_id: str, *, populate_bytes: int | None = None) -> MappedSegment:
        """The segment, mapped. At its first use `populate_bytes` of it (None: all, 0: nothing) are mapped page by page ahead."""
        with self._lock:
            self._check_process()
            known = self._segments.get(segment_id)
            if known is not None:
                self._segments.move_to_end(segment_id)
                return known
            ready, fd = self._ask(FdSegment(segment_id=segment_id), (), self._timeout_s)
            descriptor = self._expect_fd(fd, "segment", segment_id)
            try:
                mapped = MappedSegment(segment_id, descriptor)
            finally:
                os.close(descriptor)
            if mapped.capacity_bytes < ready.capacity_bytes:
                raise self._broken(f"the daemon lent {mapped.capacity_bytes} of {ready.capacity_bytes} bytes", None)
            self._segments[segment_id] = mapped
            while len(self._segments) > _KEPT_MAPPINGS:
                self._segments.popitem(last=False)
        mapped.populate(populate_bytes)
        return mapped

    def open(self, object_id: str, tier: str) -> OpenedReplica:
        """A read-only descriptor of the object's replica in this tier. NotFound if there is none."""
        with self._lock:
            ready, fd = self._ask(FdOpen(object_id=object_id, tier=tier), (), self._timeout_s)
            return OpenedReplica(self._expect_fd(fd, "open", object_id), ready)

    def follow(self, object_id: str) -> int:
        """The pipe that tells what of an arriving object can be read, for the caller to close. NotFound when it has arrived."""
        with self._lock:
            _, fd = self._ask(FdFollow(object_id=object_id), (), self._timeout_s)
            return self._expect_fd(fd, "follow", object_id)

    def open_file(self, path: str, version: str = "") -> tuple[FdFile, int | None]:
        """The node's copy of a file of the tree, and its read-only descriptor, which is the caller's; none where it has to be streamed."""
        with self._lock:
            return self._answer(FdFile, FdOpenFile(path=path, version=version), (), self._timeout_s)

    def look(self, path: str) -> TreeInfo:
        """What is at a path of the tree."""
        with self._lock:
            looked = self._said(FdLooked, FdLook(path=path), (), self._timeout_s)
            if looked.info is None:
                raise self._broken(f"the daemon's answer does not say what is at {path}", None)
            return looked.info

    def need(
        self, version: str, copy_id: str, offset_bytes: int, size_bytes: int, *, timeout_s: float, exact: bool = False
    ) -> None:
        """Wait until these bytes of a copy are there; `exact`: nothing else of it is wanted. NotFound: open the file again. TierFull:
        stream them."""
        request = FdNeed(version=version, copy_id=copy_id, offset_bytes=offset_bytes, size_bytes=size_bytes, exact=exact)
        with self._lock:
            self._ask(request, (), timeout_s)

    def ingest(self, attempt_id: str, name: str, fd: int, size_bytes: int, *, timeout_s: float | None = None) -> FdReady:
        """Have the daemon store the file behind `fd`, which stays the caller's. Returns once it is durable."""
        request = FdIngest(attempt_id=attempt_id, name=name, size_bytes=size_bytes)
        with self._lock:
            return self._said(FdReady, request, (fd,), timeout_s)

    @property
    def is_open(self) -> bool:
        """Whether this session can still be asked: it was not closed here, and the daemon has not hung up (one system call)."""
        sock = self._socket
        if sock is None or self._owner_pid != os.getpid():
            return False
        poll = select.poll()
        try:
            poll.register(sock, select.POLLRDHUP)
            return not poll.poll(0)
        except (OSError, ValueError):  # closed meanwhile, by another thread
            return False

    def close(self) -> None:
        """End the session. Views of segments stay valid, but nothing written into them counts any more."""
        sock, self._socket = self._socket, None
        if sock is not None:
            if self._owner_pid == os.getpid():
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for an answer
            sock.close()
        self._segments.clear()

    def __enter__(self) -> DescriptorConnection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- the exchange --------------------------------------------------------------------------------------------------------

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self._timeout_s)
        try:
            sock.connect(os.fspath(self._path))
        except PermissionError as error:
            sock.close()
            raise Unauthorized("the socket belongs to another user", operation="connect", subject=str(self._path)) from error
        except OSError as error:
            sock.close()
            raise DaemonUnavailable(
                f"nobody answers: {error.strerror or error}",
                operation="connect",
                subject=str(self._path),
                hint="start it with `ckptstore serve`",
            ) from error
        return sock

    def _greet(self) -> str:
        with self._lock:
            document, fds = self._exchange(FdHello(api=API_VERSION, pid=os.getpid()), (), self._timeout_s)
            fd_protocol.close_all(fds)
            if "error" in document:
                error = from_wire(document["error"])
                if isinstance(error, InvalidInput):  # all that is wrong with a greeting is its version: daemons before version 2 say it so
                    raise VersionMismatch(error.why, operation="connect", subject=str(self._path), hint=RESTART) from error
                raise error
            try:
                return fd_protocol.read_as(document, FdWelcome).session
            except InvalidInput as error:
                raise self._broken("the daemon's greeting makes no sense", error) from error

    def _ask(self, message: Message, fds: Sequence[int], timeout_s: float | None) -> tuple[FdReady, int | None]:
        return self._answer(FdReady, message, fds, timeout_s)

    def _said(self, kind: type[Said], message: Message, fds: Sequence[int], timeout_s: float | None) -> Said:
        """The answer to a question that brings no descriptor; one that comes all the same is closed."""
        said, received = self._answer(kind, message, fds, timeout_s)
        fd_protocol.close_all(() if received is None else (received,))
        return said

    def _answer(self, kind: type[Said], message: Message, fds: Sequence[int], timeout_s: float | None) -> tuple[Said, int | None]:
        """Under the lock. The answer's error is raised; its descriptor is the caller's."""
        document, received = self._exchange(message, fds, timeout_s)
        try:
            said = fd_protocol.read_as(document, kind)
        except InvalidInput as error:
            fd_protocol.close_all(received)
            raise self._broken("the daemon's answer makes no sense", error) from error
        if said.error is not None:
            fd_protocol.close_all(received)
            raise from_wire(said.error)
        return said, received[0] if received else None

    def _exchange(self, message: Message, fds: Sequence[int], timeout_s: float | None) -> tuple[dict[str, object], list[int]]:
        self._check_process()
        sock = self._socket
        if sock is None:
            raise DaemonUnavailable("this connection was closed", operation="ask the daemon", hint="connect again")
        try:
            sock.settimeout(timeout_s)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                fd_protocol.send(sock, message, fds)  # it hung up: what it said before that may still be there to read
            return fd_protocol.receive(sock)
        except TimeoutError as error:
            self.close()
            raise WaitTimeout(
                f"no answer within {timeout_s:g} s" if timeout_s is not None else "the answer stopped in the middle",
                operation="ask the daemon",
                subject=str(self._path),
            ) from error
        except (OSError, InvalidInput) as error:
            raise self._broken("the daemon hung up", error) from error

    def _check_process(self) -> None:
        if self._owner_pid != os.getpid():
            raise DaemonUnavailable(
                "this connection belongs to the parent process",
                operation="ask the daemon",
                hint="connect again in the forked process",
            )

    def _broken(self, why: str, error: Exception | None) -> DaemonUnavailable:
        self.close()
        return DaemonUnavailable(
            f"{why} ({error})" if error else why,
            operation="ask the daemon",
            subject=str(self._path),
            hint="see its log; `ckptstore status` tells whether it runs. Then connect again",
        )

    def _expect_fd(self, fd: int | None, operation: str, subject: str) -> int:
        if fd is None:
            raise self._broken(f"the daemon's answer to {operation} {subject} came without a descriptor", None)
        return fd

    def _drop_after_fork(self) -> None:
        """In the child: no lock (another thread may have held it), no shutdown (it would end the parent's session)."""
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()
        self._segments = OrderedDict()
        self._lock = threading.Lock()


#: Connections of this process, so that a forked child can let go of them.
_live: weakref.WeakSet[DescriptorConnection] = weakref.WeakSet()


def _let_go_in_child() -> None:
    for connection in list(_live):
        connection._drop_after_fork()
    _live.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
