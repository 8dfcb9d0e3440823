"""Moving objects down, towards durable: what waits is in the catalog, so a restart goes on where it stopped.

One loop per tier takes what is due, in the order in which checkpoints were opened, a bounded number of objects at once. A failure puts
the object back with growing, jittered pauses; nothing is counted as drained before the tier has verified it. When the last object of a
checkpoint has arrived, its commit record follows. When each block may go is the tier's lane's to say (`lane.py`).
"""

from __future__ import annotations

import asyncio
import random

from ckptstore.catalog.model import Drain
from ckptstore.errors import ChecksumMismatch, CkptStoreError, NotFound, TierFull
from ckptstore.failpoints import declare, failpoint
from ckptstore_server.evict import Evictor
from ckptstore_server.lane import CalledOff
from ckptstore_server.node import Node
from ckptstore_server.publish import Publisher
from ckptstore_server.replicas import Replicas
from ckptstore_server.tier_handle import TierHandle

#: The pause after the first failure, doubled after each further one up to the longest, in seconds; a jitter of ± 25 % is added.
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
#: How long an idle loop sleeps before it looks again by itself: work normally announces itself, retries fall due.
IDLE_LOOK_S = 2.0


def pause_after(tries: int) -> float:
    """Seconds until the next try."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(tries, 16)) * random.uniform(0.75, 1.25)


BEFORE_PUT = declare("drain.before_put")
AFTER_CATALOG = declare("drain.after_catalog")


class Drainer:
    def __init__(self, node: Node, publisher: Publisher, replicas: Replicas, evictor: Evictor) -> None:
        self._node = node
        self._publisher = publisher
        self._replicas = replicas
        self._evictor = evictor
        self._moving: set[tuple[str, str]] = set()

    @property
    def busy(self) -> bool:
        return bool(self._moving)

    async def run(self, handle: TierHandle) -> None:
        """The loop of one tier; ends when it is cancelled."""
        workers = asyncio.Semaphore(self._node.settings.drain_workers)
        tasks: set[asyncio.Task[None]] = set()
        try:
            while True:
                ticket = self._node.board.ticket()
                started = await self._start_due(handle, workers, tasks)
                if not started:
                    await self._node.board.heard(ticket, IDLE_LOOK_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _start_due(self, handle: TierHandle, workers: asyncio.Semaphore, tasks: set[asyncio.Task[None]]) -> int:
        try:
            due = await self._node.query(self._node.catalog.pending_drains, handle.name, limit=4 * self._node.settings.drain_workers)
        except CkptStoreError as error:
            self._node.remark(f"drain into {handle.name}", error)
            return 0
        started = 0
        for drain in due:
            if (drain.object_id, handle.name) in self._moving or self._replicas.is_claimed(drain.object_id, handle.name):
                continue
            await workers.acquire()
            self._moving.add((drain.object_id, handle.name))
            task = asyncio.create_task(self._one(handle, drain, workers), name=f"drain {drain.key} into {handle.name}")
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            started += 1
        return started

    async def _one(self, handle: TierHandle, drain: Drain, workers: asyncio.Semaphore) -> None:
        try:
            await self._node.run(self._node.tier_executor(handle), self._move, handle, drain)
            await self._publisher.settle(handle)
        except CalledOff:
            return  # the object was removed, and its queue entry with it; or the daemon stops, and the next one goes on
        except CkptStoreError as error:
            await self._put_back(handle, drain, error)
        except Exception as error:  # noqa: BLE001 - the top of a task: an unknown fault delays this object, not the others
            await self._put_back(handle, drain, CkptStoreError(f"a fault in the daemon: {error!r}", operation="drain", subject=drain.key))
        finally:
            self._moving.discard((drain.object_id, handle.name))
            workers.release()
            self._node.board.announce()

    def _move(self, handle: TierHandle, drain: Drain) -> None:
        file = self._node.catalog.object(drain.object_id)
        failpoint(BEFORE_PUT)
        # What goes into the first tier is a recall or a repair: a reader may wait for it.
        self._replicas.copy(file, handle, quietly=handle is not self._node.durable[0])
        failpoint(AFTER_CATALOG)

    async def _put_back(self, handle: TierHandle, drain: Drain, error: CkptStoreError) -> None:
        if isinstance(error, NotFound):
            return  # deleted meanwhile, and its queue entry with it
        if isinstance(error, TierFull):
            await self._evictor.make_room(handle, drain.size_bytes)
        self._node.remark(f"drain into {handle.name}", error)
        if isinstance(error, ChecksumMismatch):
            handle.last_error = str(error)
        try:
            await self._node.query(self._node.catalog.drain_failed, drain.object_id, handle.name, str(error), pause_after(drain.tries))
        except CkptStoreError as failure:
            self._node.remark(f"drain into {handle.name}", failure)
