"""Deleting what the catalog has already let go: tombstones, then records, then objects, then the tombstones themselves.

The catalog holds the order (see `ckptstore.catalog.chores`): it offers a step only when the steps before it are done in every tier
that must have done them. Doing a step twice is harmless, so a crash between the deed and the note costs nothing.
"""

from __future__ import annotations

import asyncio

from ckptstore.catalog.model import Act, Chore
from ckptstore.errors import CkptStoreError
from ckptstore.failpoints import declare, failpoint
from ckptstore_server.drain import pause_after
from ckptstore_server.node import Node
from ckptstore_server.publish import Publisher
from ckptstore_server.replicas import Replicas
from ckptstore_server.tier_handle import TierHandle
from ckptstore_tiers.interface import Tier

#: Steps that one look at the catalog brings.
CHORES_PER_LOOK = 128
#: How long a removal waits for its tombstones, in seconds.
PATIENCE_S = 10.0
BEFORE = {act: declare(f"delete.before_{act.value}") for act in Act}
AFTER = {act: declare(f"delete.after_{act.value}") for act in Act}


class Deletion:
    def __init__(self, node: Node, publisher: Publisher, replicas: Replicas) -> None:
        self._node = node
        self._replicas = replicas
        self._publisher = publisher
        self._failures: dict[str, int] = {}
        self._turns: set[asyncio.Future[int]] = set()

    async def soon(self) -> None:
        """Work off for a moment before a removal is acknowledged, so that its tombstones are in the tiers that answer: a catalog that
        is lost right after it does not bring the removed back. What takes longer goes on behind."""
        turn = asyncio.ensure_future(self.work_off())
        self._turns.add(turn)
        turn.add_done_callback(self._turns.discard)
        await asyncio.wait({turn}, timeout=PATIENCE_S)

    async def work_off(self) -> int:
        """Do every step that may be done now; how many were done. A tier that hangs delays only its own."""
        return sum(await asyncio.gather(*(self._work_off(handle) for handle in self._node.handles)))

    async def _work_off(self, handle: TierHandle) -> int:
        # No record may be written while records are deleted: see Publisher.record_locks.
        async with self._publisher.record_locks[handle.name]:
            return await self._node.run(self._node.tier_executor(handle), self._work_off_tier, handle)

    def _work_off_tier(self, handle: TierHandle) -> int:
        done = 0
        while chores := self._node.catalog.chores(handle.name, grace_s=self._node.settings.grace_s, limit=CHORES_PER_LOOK):
            for chore in chores:
                try:
                    self._do(handle, chore)
                except CkptStoreError as error:
                    self._node.remark(f"delete in {handle.name}", error)
                    tries = self._failures.get(handle.name, 0)
                    self._node.catalog.chore_failed(chore, str(error), pause_after(tries))
                    self._failures[handle.name] = tries + 1
                    return done
                self._node.catalog.chore_done(chore)
                self._failures.pop(handle.name, None)
                done += 1
        return done

    def _do(self, handle: TierHandle, chore: Chore) -> None:
        failpoint(BEFORE[chore.act])
        with handle.watched() as tier:
            match chore.act:
                case Act.WRITE_TOMBSTONE:
                    tier.put_document(chore.key, chore.document)
                case Act.DELETE_RECORD:
                    if self._node.catalog.still_due(chore):  # what leaves a tier may be wanted in it again meanwhile
                        tier.delete(chore.key)
                case Act.DELETE_OBJECT:
                    handle.lane.call_off(chore.object_id or "")  # a copy under way would hold up the deletion as long as it takes
                    self._delete_object(tier, chore)
                case _:
                    tier.delete(chore.key)
        failpoint(AFTER[chore.act])

    def _delete_object(self, tier: Tier, chore: Chore) -> None:
        """Under the lock of the object's place: an evicted object may have been recalled meanwhile, and the chore withdrawn."""
        object_id = chore.object_id or ""
        with self._replicas.place(object_id, chore.tier):
            if self._node.catalog.still_due(chore):
                tier.sweep([object_id])
                tier.delete(chore.key)
