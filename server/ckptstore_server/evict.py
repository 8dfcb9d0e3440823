"""Keeping a tier below its high-water mark, so that a long run never fills the disk.

Only replicas whose object is verified, with its commit record, in a deeper durable tier go, oldest use first; the catalog tests that in
the transaction that drops the replica, so the last copy cannot go. The transaction also notes the deletion that is owed: a crash before
the bytes are gone leaves a chore, not a leak.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from ckptstore.catalog.model import StoredFile
from ckptstore.errors import CkptStoreError
from ckptstore.failpoints import declare, failpoint
from ckptstore_server.node import Node
from ckptstore_server.replicas import Replicas
from ckptstore_server.tier_handle import TierHandle

#: Candidates that one look at the catalog brings.
CANDIDATES_PER_LOOK = 64
BEFORE_CATALOG = declare("evict.before_catalog")
AFTER_CATALOG = declare("evict.after_catalog")


class GivesWay(Protocol):
    def __call__(self, for_bytes: int = 0, *, mark: float | None = None) -> int:
        """Take less of the disk, until it is below the mark with so many bytes more. Blocking."""
        ...


class Evictor:
    def __init__(self, node: Node, replicas: Replicas) -> None:
        self._node = node
        self._replicas = replicas
        self._locks = {handle.name: asyncio.Lock() for handle in node.handles}
        self.others_give_way: GivesWay | None = None  # the cache, whose copies lie on the same disk and can be had again

    async def keep_below_mark(self) -> None:
        for handle in self._node.handles:
            if handle.opened is not None and handle.fill() > handle.settings.high_water:
                await self.make_room(handle)

    async def before_put(self, handle: TierHandle, size_bytes: int) -> None:
        """Keep the tier below its mark with this object, too: a save that comes faster than the next look must not find it full.

        Where that does not do, since what could go is not safe below yet, drains are hurried from now on, and not from that look on.
        """
        if await self._passes_mark(handle, size_bytes):
            await self.make_room(handle, size_bytes)
            if handle in self._node.node_local and await self._passes_mark(handle, size_bytes):
                self._node.quiet.suspended = True

    async def _passes_mark(self, handle: TierHandle, size_bytes: int) -> bool:
        return handle.opened is not None and await self._node.run(self._node.tier_executor(handle), _is_above_mark, handle, size_bytes)

    async def make_room(self, handle: TierHandle, for_bytes: int = 0) -> int:
        """Evict down to the low-water mark and until `for_bytes` are free, or until nothing may go; bytes freed."""
        freed_bytes = 0
        async with self._locks[handle.name]:
            if self.others_give_way is not None and handle in self._node.node_local:
                mark = handle.settings.low_water
                await self._node.run(self._node.tier_executor(handle), self.others_give_way, for_bytes, mark=mark)
            while handle.opened is not None and _is_too_full(handle, for_bytes):
                freed = await self._node.run(self._node.tier_executor(handle), self._evict_some, handle, for_bytes)
                if freed == 0:
                    break
                freed_bytes += freed
        return freed_bytes

    def _evict_some(self, handle: TierHandle, for_bytes: int) -> int:
        freed_bytes = 0
        for candidate in self._node.catalog.eviction_candidates(handle.name, limit=CANDIDATES_PER_LOOK):
            if not _is_too_full(handle, for_bytes):
                break
            try:
                if not self._evict(handle, candidate):
                    continue
            except CkptStoreError as error:
                self._node.remark(f"evict from {handle.name}", error)
                return freed_bytes
            freed_bytes += candidate.size_bytes
        return freed_bytes

    def _evict(self, handle: TierHandle, candidate: StoredFile) -> bool:
        """One replica, under the lock of its place, so that no recall brings it back between the two steps."""
        with self._replicas.place(candidate.object_id, handle.name), handle.watched() as tier:
            failpoint(BEFORE_CATALOG)
            if not self._node.catalog.drop_replica(candidate.object_id, handle.name):
                return False
            failpoint(AFTER_CATALOG)
            tier.delete(candidate.key)
            return True


def _is_above_mark(handle: TierHandle, size_bytes: int) -> bool:
    limit_bytes = handle.usage().limit_bytes
    return limit_bytes is not None and handle.fill() + size_bytes / max(limit_bytes, 1) > handle.settings.high_water


def _is_too_full(handle: TierHandle, for_bytes: int) -> bool:
    """Above the low-water mark, or without room for so many bytes though the tier is large enough for them.

    The mark alone would not do: an object that is larger than what is free below it would wait for room for ever.
    """
    usage = handle.usage()
    if not usage.limit_bytes or usage.free_bytes is None:
        return False
    return handle.fill() > handle.settings.low_water or usage.free_bytes < for_bytes <= usage.limit_bytes
