"""Moving objects up, towards fast: an object that is nowhere openable on this node is fetched once, whoever asks.

The first to ask starts the copy into the first of the node's own tiers that takes it; everybody else joins the same one (single flight).
Nobody waits for its end: as soon as the file exists, readers follow it (see `arriving`), and have each block when it was written. If no
local tier takes the object, readers are served by streaming instead.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from ckptstore.catalog.model import StoredFile
from ckptstore.errors import Busy, CkptStoreError
from ckptstore.failpoints import declare, failpoint
from ckptstore.wire import LONG_POLL_S, Located, ReplicaInfo
from ckptstore_server.arriving import Arriving
from ckptstore_server.evict import Evictor
from ckptstore_server.node import Node
from ckptstore_server.replicas import MEMORY, Replicas
from ckptstore_server.tier_handle import TierHandle

BEFORE_PUT = declare("recall.before_put")
AFTER_CATALOG = declare("recall.after_catalog")
#: Those who stream an object ask for each of its blocks: after a recall that failed, the next one waits so long.
FAILED_PAUSE_S = 5.0


@dataclass(frozen=True)
class Flight:
    """A recall on its way; `begun` is set when its first bytes may be read, or it has ended."""

    task: asyncio.Task[None]
    begun: asyncio.Event


class Recall:
    def __init__(self, node: Node, replicas: Replicas, evictor: Evictor) -> None:
        self._node = node
        self._replicas = replicas
        self._evictor = evictor
        self._flights: dict[str, Flight] = {}
        self._not_before_s: dict[str, float] = {}  # objects that no tier of the node took, or could get

    async def locate(self, object_id: str, *, recall: bool = True) -> Located:
        """Every replica that this node can reach, nearest first; with `recall`, the object is recalled if none of them can be opened here.

        Raises Busy while a recall does not even begin for longer than one request may take: ask again.
        """
        file = await self._node.query(self._node.catalog.object, object_id)
        located = await self._look(file)
        if recall and not is_openable(located):
            await self.begin(file)
            located = await self._look(file)
        return located

    async def _look(self, file: StoredFile) -> Located:
        found: list[ReplicaInfo] = []
        if self._node.pool.find(file.object_id) is not None:
            found.append(ReplicaInfo(tier=MEMORY, kind="memory", openable=True, node=self._node.node_id))
        for handle, replica in await self._node.query(self._replicas.recorded, file.object_id):
            openable = handle.settings.kind == "posix" and replica.stored_bytes is None
            found.append(ReplicaInfo(tier=handle.name, kind=handle.settings.kind, openable=openable, node=replica.node))
        arriving = self._replicas.arrivals.find(file.object_id)
        if arriving is not None and all(replica.tier != arriving.tier for replica in found):
            found.append(ReplicaInfo(tier=arriving.tier, kind="posix", openable=True, node=self._node.node_id))
        return Located(object_id=file.object_id, replicas=found)

    async def begin(self, file: StoredFile) -> None:
        """Have the object on its way into a tier of this node, if one takes it: at return it can be followed, is there, or will not be."""
        flight = self._flights.get(file.object_id)
        if flight is None and time.monotonic() < self._not_before_s.get(file.object_id, 0.0):
            return
        if flight is None:
            begun = asyncio.Event()
            flight = Flight(asyncio.create_task(self._fetch(file, begun), name=f"recall {file.key}"), begun)
            self._flights[file.object_id] = flight
            flight.task.add_done_callback(lambda _: self._flights.pop(file.object_id, None))
        try:
            async with asyncio.timeout(LONG_POLL_S):
                await flight.begun.wait()
        except TimeoutError:
            raise Busy("the object is being recalled", operation="read", subject=file.key, hint="ask again: the recall goes on") from None

    async def _fetch(self, file: StoredFile, begun: asyncio.Event) -> None:
        """The top of a recall: a failure leaves streaming to the reader, and a line in `status`."""
        try:
            if is_openable(await self._look(file)):
                return  # another recall brought it since whoever asks for this one had looked
            for handle in self._node.node_local:
                if await self._takes(handle, file) and await self._fetch_into(handle, file, begun):
                    return
            now_s = time.monotonic()
            self._not_before_s = {key: at_s for key, at_s in self._not_before_s.items() if at_s > now_s}
            self._not_before_s[file.object_id] = now_s + FAILED_PAUSE_S
        finally:
            begun.set()

    async def _takes(self, handle: TierHandle, file: StoredFile) -> bool:
        """Whether the tier is one that a recall may fill with this object: not, if policies keep it from there."""
        wanted = self._node.catalog.is_wanted_in
        return handle.settings.compression == "none" and await self._node.query(wanted, file.object_id, handle.name)

    async def _fetch_into(self, handle: TierHandle, file: StoredFile, begun: asyncio.Event) -> bool:
        """Whether the tier has taken the object."""
        loop = asyncio.get_running_loop()
        arriving = Arriving(file, handle.name, lambda: loop.call_soon_threadsafe(begun.set))
        try:
            if not await self._has_room(handle, file.size_bytes):
                return False  # and nothing is queued: a recall that cannot be done is not work that waits
            with self._replicas.claimed(file.object_id, handle.name):
                # The queue knows of it first: a crash in the middle leaves work for the next daemon, not a file that nobody knows.
                await self._node.query(self._node.catalog.request_drain, file.object_id, handle.name)
                failpoint(BEFORE_PUT)
                await self._node.run(self._node.upkeep_executor, self._copy, file, handle, arriving)
                failpoint(AFTER_CATALOG)
        except CkptStoreError as error:
            self._node.remark(f"recall into {handle.name}", error)
            return False
        return True

    def _copy(self, file: StoredFile, handle: TierHandle, arriving: Arriving) -> None:
        with self._replicas.arrivals.announced(arriving):
            self._replicas.copy(file, handle, follower=arriving)

    async def _has_room(self, handle: TierHandle, size_bytes: int) -> bool:
        """Whether the tier has room for so many bytes, if need be once others have given way."""
        usage = await self._node.run(self._node.upkeep_executor, handle.usage)
        if usage.free_bytes is None or usage.free_bytes >= size_bytes:
            return True
        await self._evictor.make_room(handle, size_bytes)
        usage = await self._node.run(self._node.upkeep_executor, handle.usage)
        return usage.free_bytes is None or usage.free_bytes >= size_bytes


def is_openable(located: Located) -> bool:
    """Whether a process of this node can open one of the replicas itself."""
    return any(replica.openable for replica in located.replicas)
