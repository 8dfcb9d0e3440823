"""What the daemon does for the descriptor socket: sessions, segments, open replicas, files to ingest.

The descriptor server calls these methods on its own threads; what concerns the event loop is handed over to it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

from ckptstore.errors import ChecksumMismatch, NotFound, TierUnavailable
from ckptstore.fd_messages import (
    FdAcquire,
    FdAttempt,
    FdFollow,
    FdHandOver,
    FdIngest,
    FdOpen,
    FdOpened,
    FdReady,
    FdRelease,
    FdSegment,
)
from ckptstore.tree_messages import FdFile, FdLook, FdLooked, FdNeed, FdOpenFile
from ckptstore.wire import OpenAttempt, SegmentGrant
from ckptstore_server.attempts import AttemptService
from ckptstore_server.grants import as_lent
from ckptstore_server.node import Node
from ckptstore_server.openings import Openings
from ckptstore_server.readers.cache.lending import CopyLending
from ckptstore_server.replicas import MEMORY, Replicas
from ckptstore_server.sessions import Sessions
from ckptstore_tiers.memory import in_job_cgroup
from ckptstore_tiers.sources import FileSource

T = TypeVar("T")

#: The longest that lending a new segment waits for its pages, in seconds; a client that has it sooner is slower, and not wrong.
PREFAULT_WAIT_S = 20.0
#: The longest that storing one handed-over file may take before its client is told to give up, in seconds.
INGEST_TIMEOUT_S = 24 * 3600.0


class Lending:
    """Implements `fd_server.DescriptorHandler`."""

    def __init__(
        self,
        node: Node,
        sessions: Sessions,
        attempts: AttemptService,
        replicas: Replicas,
        copies: CopyLending,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._node = node
        self._replicas = replicas
        self._sessions = sessions
        self._attempts = attempts
        self._openings = Openings(attempts)
        self._to_open: dict[str, tuple[OpenAttempt, SegmentGrant]] = {}  # by session, from its slot until it is told of it
        self._copies = copies
        self._loop = loop

    def _on_loop(self, work: Coroutine[Any, Any, T], timeout_s: float | None = 60.0) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def connected(self, session: str, pid: int, uid: int) -> None:
        job = in_job_cgroup(pid)

        async def note() -> None:
            self._sessions.open_local(session, pid, job.advice if job.shared else None)

        self._on_loop(note())

    def disconnected(self, session: str) -> None:
        self._to_open.pop(session, None)

        async def note() -> None:
            self._sessions.close(session)
            self._openings.session_lost(session)
            await self._attempts.session_lost(session)

        if self._loop.is_running():
            self._on_loop(note(), None)  # however long the catalog is locked

    def acquire(self, session: str, message: FdAcquire) -> tuple[FdReady, int | None]:
        """A slot ahead of the attempt that it is for, which is joined while the client copies: begun now, it would hold up the answer."""
        segment = self._node.pool.acquire(session, message.size_bytes, timeout_s=0.0)
        if message.opens is not None:
            self._to_open[session] = message.opens, as_lent(segment)
        ready = FdReady(segment_id=segment.segment_id, capacity_bytes=segment.capacity_bytes, generation=segment.generation)
        return ready, None

    def answered(self, session: str) -> None:
        if (waiting := self._to_open.pop(session, None)) is not None:
            self._loop.call_soon_threadsafe(self._openings.begin, *waiting, session)

    def opened(self, session: str, message: FdOpened) -> tuple[FdAttempt, int | None]:
        return FdAttempt(opened=self._on_loop(self._openings.answer(message.segment_id, message.generation, session))), None

    def release(self, session: str, message: FdRelease) -> tuple[FdReady, int | None]:
        """The slot first: an attempt that is granted it from now on finds it gone, and ends."""
        self._node.pool.give_up(message.segment_id, message.generation, owner=session)
        self._on_loop(self._attempts.slot_given_up(message.segment_id, message.generation, session, message.why))
        return FdReady(), None

    def hand_over(self, session: str, message: FdHandOver) -> tuple[FdReady, int | None]:
        """On the session's own connection, so that its end cannot overtake it."""
        self._on_loop(self._attempts.take(message.attempt_id, message.rank, message.slot, session=session))
        return FdReady(), None

    def segment(self, session: str, message: FdSegment) -> tuple[FdReady, int | None]:
        """Its descriptor, once its pages are present: a client that copies into fresh ones would make them itself, as small ones."""
        segment = self._node.pool.lent(message.segment_id, session)
        segment.wait_prefaulted(PREFAULT_WAIT_S)
        ready = FdReady(capacity_bytes=segment.capacity_bytes, generation=segment.generation)
        return ready, segment.duplicate()

    def open(self, session: str, message: FdOpen) -> tuple[FdReady, int | None]:
        """A read-only descriptor. The reader checks every block; for memory also that the generation is still the same."""
        if message.tier == MEMORY:
            segment = self._node.pool.find(message.object_id)
            if segment is None:
                raise NotFound("the object is no longer in memory", operation="open", subject=message.object_id, tier=MEMORY)
            ready = FdReady(size_bytes=segment.size_bytes, capacity_bytes=segment.capacity_bytes, generation=segment.generation)
            return ready, segment.read_only_fd()
        file = self._node.catalog.object(message.object_id)
        arriving = self._replicas.arrivals.find(message.object_id)
        if arriving is not None and arriving.tier == message.tier:
            return FdReady(size_bytes=file.size_bytes, capacity_bytes=file.size_bytes, arriving=True), arriving.descriptor()
        try:
            fd = self._replica_fd(message, file.key, file.size_bytes)
        except NotFound:
            self._replicas.missing(file, message.tier)
            raise
        except ChecksumMismatch as error:
            self._replicas.damaged(file, message.tier, error.why)
            raise
        self._node.catalog.touch([message.object_id], message.tier)
        return FdReady(size_bytes=file.size_bytes, capacity_bytes=file.size_bytes), fd

    def _replica_fd(self, message: FdOpen, key: str, size_bytes: int) -> int:
        with self._node.handle(message.tier).watched() as tier:
            reader = tier.open(key, size_bytes=size_bytes)
            try:
                fd = reader.fileno()
                if fd is None:
                    raise TierUnavailable(
                        "this replica has no descriptor to hand out",
                        operation="open",
                        subject=key,
                        tier=message.tier,
                        hint="stream the content",
                    )
                return os.dup(fd)
            finally:
                reader.close()

    def follow(self, session: str, message: FdFollow) -> tuple[FdReady, int | None]:
        arriving = self._replicas.arrivals.find(message.object_id)
        if arriving is None:
            raise NotFound("the object is not being recalled", operation="follow", subject=message.object_id)
        return FdReady(size_bytes=arriving.file.size_bytes), arriving.follow()

    def look(self, session: str, message: FdLook) -> tuple[FdLooked, int | None]:
        return self._copies.look(message), None

    def open_file(self, session: str, message: FdOpenFile) -> tuple[FdFile, int | None]:
        return self._copies.open_file(message)

    def need(self, session: str, message: FdNeed) -> tuple[FdReady, int | None]:
        return self._copies.need(message), None

    def ingest(self, session: str, message: FdIngest, fd: int) -> tuple[FdReady, int | None]:
        stored = self._on_loop(
            self._attempts.store_file(message.attempt_id, message.name, FileSource(fd, message.size_bytes)), INGEST_TIMEOUT_S
        )
        return FdReady(size_bytes=stored.size_bytes, digest=stored.digest), None
