"""How does a reader that remembers what it was told hear that it is not so any more? It asks for what changed since, and is held until
something has.

What is published or removed on this node wakes it at once; what happens on other nodes is found by a look at the catalog, one number,
every `LOOK_S`. What changed, the catalog knows, also after a restart.

A follower that gives its name says with its next question that it has acted on the answer before. So `told` can wait until the mounts of
this node have heard: what a `put` or an `rm` has returned from is then what every program on the node sees. A follower that is slow, or
gone, costs `PATIENCE_S` once. All of it belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib

from ckptstore.errors import CkptStoreError
from ckptstore.tree_messages import TreeChanges
from ckptstore_server.node import Node

#: A mount on another node shows a change within a second: a look, its answer, and what the kernel then asks.
LOOK_S = 0.4
#: How long a change is held back for those who follow.
PATIENCE_S = 0.5
#: So many are waited for: mounts of this node.
FOLLOWERS = 64


class Changes:
    def __init__(self, node: Node) -> None:
        self._node = node
        #: who follows → the last change that it has acted on; who asked last comes last
        self._followers: dict[str, int] = {}
        self._acted = asyncio.Event()
        self.stopping = False

    def stop(self) -> None:
        """Nobody is held any longer, so that the daemon can end."""
        self.stopping = True
        self._node.board.announce()

    async def number(self) -> int:
        """Greater after every change of the namespace, on whatever node."""
        return await self._node.query(self._node.catalog.namespace_sequence)

    async def since(self, seen: int, timeout_s: float, follower: str = "") -> TreeChanges:
        """What changed after `seen`, as soon as something has; after `timeout_s` that nothing has. From -1 on: where it stands now."""
        if not follower or seen < 0:
            return await self._since(seen, timeout_s)
        self._followers.pop(follower, None)
        self._followers[follower] = seen
        if len(self._followers) > FOLLOWERS:
            del self._followers[next(iter(self._followers))]
        self._acted.set()
        self._acted = asyncio.Event()
        return await self._since(seen, timeout_s)

    async def _since(self, seen: int, timeout_s: float) -> TreeChanges:
        clock = asyncio.get_running_loop().time
        deadline_s = clock() + timeout_s
        while True:
            ticket = self._node.board.ticket()
            now = await self.number()
            if seen < 0:
                return TreeChanges(seen=now)
            if now != seen:
                changes = await self._node.query(self._node.catalog.changes_since, seen)
                return TreeChanges(seen=changes.sequence, paths=None if changes.paths is None else list(changes.paths))
            if self.stopping or clock() >= deadline_s:
                return TreeChanges(seen=seen, paths=[])
            await self._node.board.heard(ticket, min(LOOK_S, deadline_s - clock()))

    async def told(self) -> None:
        """Return when all who follow have acted on what has changed until now, or after `PATIENCE_S`: who is slower follows no more."""
        if not self._followers:
            return
        with contextlib.suppress(CkptStoreError):
            now = await self.number()
            self._node.board.announce()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    while any(seen < now for seen in self._followers.values()):
                        await self._acted.wait()
            except TimeoutError:
                self._followers = {name: seen for name, seen in self._followers.items() if seen >= now}
