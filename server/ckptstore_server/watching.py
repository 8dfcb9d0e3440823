"""Telling what is published below a path, and when it becomes safer, as it happens.

Each watcher looks when something was announced on this node, and as often as `changes` does for what other nodes did: first at one number,
and only when that has changed at what it stands for. What is published and not yet in every tier is looked at again until it is, all of it
in one question; a watcher who cares about very many of them at once is told of the newest ones only.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Literal

from ckptstore.catalog.model import Publication
from ckptstore.paths import check_folder
from ckptstore.watch_messages import WatchEvent
from ckptstore_server.node import Node
from ckptstore_server.readers.changes import LOOK_S, Changes

#: Without news, a sign of life so often: who watches can tell a quiet run from a lost connection.
SIGN_OF_LIFE_S = 15.0
#: Publications whose way down the tiers one watcher is told of.
FOLLOWED = 256


class Watching:
    def __init__(self, node: Node, changes: Changes) -> None:
        self._node = node
        self._changes = changes

    async def watch(self, path: str, since: int | None) -> AsyncIterator[WatchEvent | None]:
        """What is published at or below `path` from now on, or after the number `since`; None as a sign of life. Ends with the daemon."""
        seen = await self._changes.number() if since is None else since
        following: OrderedDict[str, Publication] = OrderedDict()
        yield WatchEvent(event="watching", sequence=seen, path=path)
        clock = asyncio.get_running_loop().time
        told_s = clock()
        while not self._changes.stopping:
            ticket = self._node.board.ticket()
            now = await self._changes.number()
            if now != seen:
                told = seen
                while page := await self._node.query(self._node.catalog.published_since, seen, path):
                    for published in page:
                        yield _event("published" if published.published_sequence > told else "tagged", published)
                        seen = published.sequence
                        following[published.publication_id] = published
                        if len(following) > FOLLOWED:
                            following.popitem(last=False)
                seen = max(seen, now)
            for event in await self._safer(following):
                yield event
                told_s = clock()
            if clock() - told_s > SIGN_OF_LIFE_S:
                yield None
                told_s = clock()
            await self._node.board.heard(ticket, LOOK_S)

    async def _safer(self, following: OrderedDict[str, Publication]) -> list[WatchEvent]:
        """What has reached a tier since the last look; what has reached all that it ever will, or is gone, is followed no longer."""
        if not following:
            return []
        events = []
        wanted = {handle.name for handle in self._node.durable}
        found = await self._node.query(self._node.catalog.publications_by_id, list(following))
        unkept = await self._node.query(self._node.catalog.unkept, list(following))
        for publication_id, before in list(following.items()):
            now = found.get(publication_id)
            if now is not None:
                events += [_event("durable", now, tier) for tier in now.durability if tier not in before.durability]
            if now is None or not now.live or wanted - unkept.get(publication_id, frozenset()) <= {*now.durability}:
                del following[publication_id]
            else:
                following[publication_id] = now
        return events


def checked(path: str) -> str:
    return check_folder(path, operation="watch")


def _event(event: Literal["published", "durable", "tagged"], found: Publication, tier: str | None = None) -> WatchEvent:
    return WatchEvent(
        event=event,
        sequence=found.sequence,
        path=found.path,
        kind=found.kind.value,
        publication_id=found.publication_id,
        step=found.step,
        metadata=json.loads(found.metadata),
        size_bytes=found.size_bytes,
        tier=tier,
        durability=found.durability,
    )
