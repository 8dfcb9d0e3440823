"""From what a client handed over to the first durable tier that takes it.

Each block of the segment is copied once, hashed and written, since the client can still write into what it handed over: what was hashed
is what was written. The header is parsed from a private copy first: a client that goes on writing harms its own checkpoint. Which tier:
the first durable one, in order; a full or failing one is passed over (its own copy follows by drain), and if none takes the bytes, the
ingest waits and tries again while the attempt lives. Of an incremental save only what changed is stored: see `incremental`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TypeVar

from ckptstore.catalog.model import NewObject
from ckptstore.errors import AttemptAborted, TierFull, TierUnavailable
from ckptstore.failpoints import declare, failpoint
from ckptstore_server.evict import Evictor
from ckptstore_server.incremental import Increment, Increments, Lineage
from ckptstore_server.node import Node
from ckptstore_server.part_check import CheckedFile, check_segment
from ckptstore_server.partial_files import PartialFile, in_order
from ckptstore_server.sharding import Sharding
from ckptstore_server.tier_handle import TierHandle
from ckptstore_tiers.checksums import BlockDigests
from ckptstore_tiers.interface import BlockSource
from ckptstore_tiers.memory import Segment
from ckptstore_tiers.sources import MemorySource

T = TypeVar("T")

#: The pauses between rounds over all tiers, in seconds: short at first, since a drain or an eviction may be about to make room.
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
BEFORE_CATALOG = declare("ingest.before_catalog")
AFTER_CATALOG = declare("ingest.after_catalog")


class Ingest:
    def __init__(self, node: Node, evictor: Evictor, increments: Increments) -> None:
        self._node = node
        self._evictor = evictor
        self._increments = increments
        self._sharding = Sharding(node)

    async def segment(
        self, attempt_id: str, rank: int, new_object: NewObject, segment: Segment, size_bytes: int, *, lineage: Lineage | None = None
    ) -> None:
        """Store a rank's segment, of an incremental save (`lineage`) what changed; afterwards the segment stays in memory.

        What the rank says of tensors that are spread over ranks is in the catalog when its bytes are in a tier. What another rank stores
        of them as well is left out; the segment is then not the object's, and not kept.
        """
        stored = False
        increment: Increment | None = None
        left_out: frozenset[str] = frozenset()
        try:
            run, executor = self._node.run, self._node.ingest_executor
            checked = await run(executor, check_segment, segment, size_bytes, new_object.name, rank)
            view = segment.view[:size_bytes]
            if checked.declared is not None:
                may_leave_out = lineage is None and checked.header is not None
                declare = partial(self._sharding.declare, may_leave_out=may_leave_out)
                left_out = await self._node.insist(declare, attempt_id, rank, checked.declared, view)
            if lineage is not None and checked.header is not None:
                increment = await run(executor, self._increments.prepare, attempt_id, new_object, lineage, view, checked.header)
            if increment is None:
                source = _without(left_out, checked, view) if left_out else MemorySource(view, stable=False)
                await self._store(attempt_id, new_object, source)
            else:
                await self._store(attempt_id, new_object, increment.source, expected=increment.digests)
                self._increments.stored(new_object.object_id, increment)
            stored = True
        finally:
            if not stored or left_out:
                self._node.pool.release(segment)
            elif increment is None:
                self._node.pool.keep_as_replica(segment, new_object.object_id, size_bytes)
            else:
                self._node.wholes.keep(segment, new_object.object_id, increment.whole)

    async def file(self, attempt_id: str, new_object: NewObject, source: BlockSource) -> BlockDigests:
        return await self._store(attempt_id, new_object, source)

    async def files(self, attempt_id: str, files: Sequence[tuple[NewObject, memoryview]]) -> None:
        """Many small files at once; their bytes do not change."""
        size_bytes = sum(len(data) for _, data in files)
        subject = files[0][0].name
        handle, stored = await self._taken(attempt_id, size_bytes, lambda handle: self._put_many(handle, files), subject)
        await self._note(partial(self._node.catalog.objects_stored, attempt_id, stored, tier=handle.name), subject)

    async def _store(
        self, attempt_id: str, new_object: NewObject, source: BlockSource, *, expected: BlockDigests | None = None
    ) -> BlockDigests:
        handle, (digests, stored_bytes) = await self._taken(
            attempt_id, source.size_bytes, lambda handle: self._put(handle, new_object, source, expected), new_object.name
        )
        stored = self._node.catalog.object_stored
        await self._note(partial(stored, new_object.object_id, digests, tier=handle.name, stored_bytes=stored_bytes), new_object.name)
        return digests

    async def _taken(self, attempt_id: str, size_bytes: int, put: Callable[[TierHandle], T], subject: str) -> tuple[TierHandle, T]:
        """The tier that has taken the bytes, and what `put` said of it."""
        async for handle in self._rounds(attempt_id):
            try:
                await self._evictor.before_put(handle, size_bytes)
                return handle, await self._node.run(self._node.ingest_executor, put, handle)
            except (TierFull, TierUnavailable) as error:
                self._node.remark(f"store into {handle.name}", error)
                if isinstance(error, TierFull):
                    await self._evictor.make_room(handle, size_bytes)
        raise AttemptAborted("the attempt is over", operation="save", subject=subject)

    async def _note(self, note: Callable[[], bool], subject: str) -> None:
        failpoint(BEFORE_CATALOG)
        if not await self._node.insist(note):
            raise AttemptAborted("the attempt was aborted while its bytes were written", operation="save", subject=subject)
        failpoint(AFTER_CATALOG)

    def _put(
        self, handle: TierHandle, new_object: NewObject, source: BlockSource, expected: BlockDigests | None
    ) -> tuple[BlockDigests, int | None]:
        """The digests, and what the object takes in the tier if it is compressed there."""
        with handle.watched(writes=True) as tier:
            digests = tier.put(new_object.key, source, expected=expected)
            handle.written.add(source.size_bytes)
            return digests, tier.stored_bytes(new_object.key, source.size_bytes)

    def _put_many(self, handle: TierHandle, files: Sequence[tuple[NewObject, memoryview]]) -> dict[str, tuple[BlockDigests, int | None]]:
        with handle.watched(writes=True) as tier:
            digests = tier.put_many([(new_object.key, data) for new_object, data in files])
            handle.written.add(sum(len(data) for _, data in files))
            return {
                new_object.object_id: (found, tier.stored_bytes(new_object.key, found.size_bytes))
                for (new_object, _), found in zip(files, digests, strict=True)
            }

    async def _rounds(self, attempt_id: str) -> AsyncIterator[TierHandle]:
        """The durable tiers, in order, over and over with growing pauses, for as long as the attempt is alive."""
        pause_s = FIRST_PAUSE_S
        while True:
            for handle in self._node.durable:
                yield handle
            view = await self._node.insist(self._node.catalog.attempt, attempt_id)
            if view.reason is not None:
                raise AttemptAborted(view.reason, operation="save", subject=view.path)
            await self._node.insist(self._node.catalog.progress, attempt_id)  # waiting for room is not being dead
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


def _without(left_out: frozenset[str], checked: CheckedFile, view: memoryview) -> BlockSource:
    """The segment's file without these tensors."""
    assert checked.header is not None
    header = checked.header.header
    kept = [entry for entry in in_order(header) if entry.key not in left_out]
    return PartialFile.of(kept, header.metadata, view[header.data_start :]).source
