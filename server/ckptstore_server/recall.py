"""Moving objects up, towards fast: an object that is nowhere openable on this node is fetched once, whoever asks.

The first to ask starts the copy into the first of the node's own tiers that takes it; everybody else waits for the same one (single
flight). If no local tier takes it, readers are served by streaming instead.
"""

from __future__ import annotations

import asyncio

from ckptstore.catalog.model import StoredFile
from ckptstore.errors import Busy, CkptStoreError
from ckptstore.failpoints import declare, failpoint
from ckptstore.wire import LONG_POLL_S, Located, ReplicaInfo
from ckptstore_server.evict import Evictor
from ckptstore_server.node import Node
from ckptstore_server.replicas import MEMORY, Replicas
from ckptstore_server.tier_handle import TierHandle

BEFORE_PUT = declare("recall.before_put")
AFTER_CATALOG = declare("recall.after_catalog")


class Recall:
    def __init__(self, node: Node, replicas: Replicas, evictor: Evictor) -> None:
        self._node = node
        self._replicas = replicas
        self._evictor = evictor
        self._flights: dict[str, asyncio.Task[None]] = {}

    async def locate(self, object_id: str) -> Located:
        """Every replica that this node can reach, nearest first; recalls the object if none of them can be opened here.

        Raises Busy while a recall goes on for longer than one request may take: ask again.
        """
        file = await self._node.query(self._node.catalog.object, object_id)
        located = await self._look(file)
        if not any(replica.openable for replica in located.replicas):
            await self.recall(file)
            located = await self._look(file)
        return located

    async def _look(self, file: StoredFile) -> Located:
        found: list[ReplicaInfo] = []
        if self._node.pool.find(file.object_id) is not None:
            found.append(ReplicaInfo(tier=MEMORY, kind="memory", openable=True, node=self._node.node_id))
        for handle, replica in await self._node.query(self._replicas.recorded, file.object_id):
            openable = handle.settings.kind == "posix" and handle.settings.compression == "none"
            found.append(ReplicaInfo(tier=handle.name, kind=handle.settings.kind, openable=openable, node=replica.node))
        return Located(object_id=file.object_id, replicas=found)

    async def recall(self, file: StoredFile) -> None:
        """Bring the object into a tier of this node, if one takes it."""
        flight = self._flights.get(file.object_id)
        if flight is None:
            flight = asyncio.create_task(self._fetch(file), name=f"recall {file.key}")
            self._flights[file.object_id] = flight
            flight.add_done_callback(lambda _: self._flights.pop(file.object_id, None))
        done, _ = await asyncio.wait({flight}, timeout=LONG_POLL_S)
        if not done:
            raise Busy("the object is being recalled", operation="read", subject=file.key, hint="ask again: the recall goes on")

    async def _fetch(self, file: StoredFile) -> None:
        """The top of a recall: a failure leaves streaming to the reader, and a line in `status`."""
        for handle in self._node.node_local:
            if handle.settings.compression != "none":
                continue
            try:
                if not await self._has_room(handle, file.size_bytes):
                    continue  # and nothing is queued: a recall that cannot be done is not work that waits
                # The queue knows of it first: a crash in the middle leaves work for the next daemon, not a file that nobody knows.
                await self._node.query(self._node.catalog.request_drain, file.object_id, handle.name)
                failpoint(BEFORE_PUT)
                await self._node.run(self._node.upkeep_executor, self._replicas.copy, file, handle)
                failpoint(AFTER_CATALOG)
                return
            except CkptStoreError as error:
                self._node.remark(f"recall into {handle.name}", error)

    async def _has_room(self, handle: TierHandle, size_bytes: int) -> bool:
        """Whether the tier has room for so many bytes, if need be once others have given way."""
        usage = await self._node.run(self._node.upkeep_executor, handle.usage)
        if usage.free_bytes is None or usage.free_bytes >= size_bytes:
            return True
        await self._evictor.make_room(handle, size_bytes)
        usage = await self._node.run(self._node.upkeep_executor, handle.usage)
        return usage.free_bytes is None or usage.free_bytes >= size_bytes
