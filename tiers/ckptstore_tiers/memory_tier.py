"""The segment pool as a tier: what the daemon itself brings into memory, to be read from there.

An object is there until its slot is needed; then it is NotFound, like one that was deleted. Who has it open reads on. Not durable: it
never counts towards publishing, and documents live in a plain dict for as long as the process does.

Any thread. The bytes are in the pool's segments (owner RECALL_OWNER), their digests in this table; the pool may drop a segment at any
moment, so every look-up asks the pool, and stale entries of the table go when they are met.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ckptstore.errors import AlreadyExists, Busy, ChecksumMismatch, InvalidInput, NotFound, TierFull
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests, DigestedBlocks
from ckptstore_tiers.interface import BlockSource, ObjectStat, TierFacts, TierUsage
from ckptstore_tiers.keys import check_key
from ckptstore_tiers.memory import RECALL_OWNER, PinnedReplica, Segment, SegmentPool
from ckptstore_tiers.memory_segment import huge_pages_offered
from ckptstore_tiers.private_copy import copy_bytes
from ckptstore_tiers.scratch import ScratchPool


@dataclass(frozen=True)
class _Stored:
    digests: BlockDigests
    modified_s: float


class MemoryTier:
    """Implements `Tier`. The pool stays the caller's."""

    def __init__(self, pool: SegmentPool, *, name: str = "memory") -> None:
        self._pool = pool
        self._name = name
        self._lock = threading.Lock()
        self._objects: dict[str, _Stored] = {}
        self._documents: dict[str, tuple[bytes, float]] = {}
        self._scratch = ScratchPool()

    @property
    def facts(self) -> TierFacts:
        details = {"huge_pages": huge_pages_offered()}
        return TierFacts(self._name, "memory", shared=False, durable=False, location="host memory", details=details)

    # --- objects -------------------------------------------------------------------------------------------------------------

    def put(self, key: str, source: BlockSource, *, expected: BlockDigests | None = None) -> BlockDigests:
        check_key(key, operation="put", tier=self._name)
        blocks = DigestedBlocks(source, expected, subject=key, tier=self._name)
        if (known := self._known(key)) is not None:
            return self._same(key, known.digests, self._pump(blocks, None))
        segment = self._acquire(key, source.size_bytes)
        try:
            digests = self._pump(blocks, segment.view)
        except BaseException:
            self._pool.release(segment)
            raise
        with self._lock:
            known = self._known_locked(key)
            if known is None:
                self._pool.keep_as_replica(segment, self._object_id(key), source.size_bytes)
                self._objects[key] = _Stored(digests, time.time())
                return digests
        self._pool.release(segment)  # another put of this key was faster
        return self._same(key, known.digests, digests)

    def _acquire(self, key: str, size_bytes: int) -> Segment:
        try:
            segment = self._pool.acquire(RECALL_OWNER, size_bytes, timeout_s=0)
            return self._pool.hold(segment.segment_id, segment.generation)
        except (Busy, TierFull) as error:
            raise TierFull(error.why, operation="put", subject=key, tier=self._name, hint=error.hint) from error

    def _pump(self, blocks: DigestedBlocks, target: memoryview | None) -> BlockDigests:
        """Copy the source's blocks to their places in `target`, or only look at them."""
        with self._scratch.borrow() as scratch:
            for index in range(blocks.count):
                start = index * BLOCK_BYTES

                def write(view: memoryview, start: int = start) -> None:
                    if target is not None and len(view):
                        copy_bytes(view, target[start : start + len(view)])

                blocks.pump(index, scratch, write)
        return blocks.digests()

    def _same(self, key: str, stored: BlockDigests, put: BlockDigests) -> BlockDigests:
        if stored != put:
            raise ChecksumMismatch("other bytes are stored under this key", operation="put", subject=key, tier=self._name)
        return stored

    def open(self, key: str) -> PinnedReplica:
        check_key(key, operation="open", tier=self._name)
        with self._lock:
            if self._known_locked(key) is None:
                raise self._missing("open", key)
            try:
                return self._pool.reader(self._object_id(key))
            except NotFound as error:
                raise self._missing("open", key) from error

    def stat(self, key: str) -> ObjectStat:
        check_key(key, operation="stat", tier=self._name)
        if (known := self._known(key)) is not None:
            return ObjectStat(key, known.digests.size_bytes, known.modified_s)
        with self._lock:
            document = self._documents.get(key)
        if document is None:
            raise self._missing("stat", key)
        return ObjectStat(key, len(document[0]), document[1])

    def delete(self, key: str) -> None:
        check_key(key, operation="delete", tier=self._name)
        with self._lock:
            self._objects.pop(key, None)
            self._documents.pop(key, None)
            self._pool.forget(self._object_id(key))

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        """The names are held, which cost nothing beside the objects in the same memory; sizes are looked up on the way."""
        with self._lock:
            names = [name for name in (*self._objects, *self._documents) if name.startswith(prefix)]
        for name in names:
            try:
                yield self.stat(name)
            except NotFound:
                continue  # gone since the listing began

    def sweep(self, owned_ids: Iterable[str] | None) -> int:
        """Nothing outlives a crash, so nothing is left over."""
        return 0

    def usage(self) -> TierUsage:
        usage = self._pool.usage()
        used = usage["lent_bytes"] + usage["held_bytes"] + usage["replica_bytes"] + usage["free_bytes"]
        return TierUsage(used, self._pool.limit_bytes, max(0, self._pool.limit_bytes - used))

    def close(self) -> None:
        """Forget every object of this tier; the pool goes on."""
        with self._lock:
            for key in self._objects:
                self._pool.forget(self._object_id(key))
            self._objects.clear()
            self._documents.clear()
        self._scratch.close()

    # --- documents -----------------------------------------------------------------------------------------------------------

    def put_document(self, key: str, data: bytes, *, exclusive: bool = False) -> None:
        check_key(key, operation="put document", tier=self._name)
        with self._lock:
            if exclusive and key in self._documents:
                raise AlreadyExists("the document exists", operation="put document", subject=key, tier=self._name)
            self._documents[key] = (bytes(data), time.time())

    def get_document(self, key: str, *, limit_bytes: int = 1 << 30) -> bytes:
        check_key(key, operation="get document", tier=self._name)
        with self._lock:
            document = self._documents.get(key)
        if document is None:
            raise self._missing("get document", key)
        if len(document[0]) > limit_bytes:
            raise InvalidInput(
                f"the document has {len(document[0])} bytes, {limit_bytes} are allowed",
                operation="get document",
                subject=key,
                tier=self._name,
            )
        return document[0]

    # --- look-ups ------------------------------------------------------------------------------------------------------------

    def _object_id(self, key: str) -> str:
        """What the pool calls it: apart from the ids of saved objects, whose segments are not this tier's to forget."""
        return f"{self._name}:{key}"

    def _known(self, key: str) -> _Stored | None:
        with self._lock:
            return self._known_locked(key)

    def _known_locked(self, key: str) -> _Stored | None:
        known = self._objects.get(key)
        if known is not None and self._pool.find(self._object_id(key)) is None:
            del self._objects[key]  # the pool needed its slot
            return None
        return known

    def _missing(self, operation: str, key: str) -> NotFound:
        return NotFound("no such object in memory", operation=operation, subject=key, tier=self._name)
