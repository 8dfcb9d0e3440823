"""How does a reader that remembers what it was told hear that it is not so any more? It asks for what changed since, and is held until
something has.

What is published or removed on this node wakes it at once; what happens on other nodes is found by a look at the catalog, one number,
every `LOOK_S`. Nothing is kept here: the catalog knows what changed, also after a restart.
"""

from __future__ import annotations

import asyncio

from ckptstore.tree_messages import TreeChanges
from ckptstore_server.node import Node

#: A mount on another node shows a change within a second: a look, its answer, and what the kernel then asks.
LOOK_S = 0.4


class Changes:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def since(self, seen: int, timeout_s: float) -> TreeChanges:
        """What changed after `seen`, as soon as something has; after `timeout_s` that nothing has. From -1 on: where it stands now."""
        clock = asyncio.get_running_loop().time
        deadline_s = clock() + timeout_s
        while True:
            ticket = self._node.board.ticket()
            now = await self._node.query(self._node.catalog.namespace_sequence)
            if seen < 0:
                return TreeChanges(seen=now)
            if now != seen:
                changes = await self._node.query(self._node.catalog.changes_since, seen)
                return TreeChanges(seen=changes.sequence, paths=None if changes.paths is None else list(changes.paths))
            if clock() >= deadline_s:
                return TreeChanges(seen=seen, paths=[])
            await self._node.board.heard(ticket, min(LOOK_S, deadline_s - clock()))
