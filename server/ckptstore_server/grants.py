"""Which slot of memory is lent for which rank of an attempt, and to whom.

A client over the descriptor socket acquires its slot first, copies at once and brings the slot along when it opens the attempt; for
others, and when none was free, opening waits for one. A grant ends when the slot is handed over, when its client gives it up, or with
the client. It lives on the event loop and in memory only: with the daemon, slots go too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ckptstore.catalog.model import NewObject
from ckptstore.errors import InvalidInput
from ckptstore.wire import HandOver, OpenAttempt, SegmentGrant
from ckptstore_server.incremental import Lineage
from ckptstore_server.node import Node
from ckptstore_tiers.memory import Segment


@dataclass
class Grant:
    """A slot that this daemon lent for one rank of an attempt."""

    attempt_id: str
    rank: int
    session: str
    new_object: NewObject
    segment: Segment
    lineage: Lineage | None  # of an incremental save
    lent_s: float = field(default_factory=time.monotonic)

    def check_size(self, size_bytes: int, operation: str) -> None:
        if size_bytes > self.segment.capacity_bytes:
            why = f"{size_bytes} bytes do not fit the segment's {self.segment.capacity_bytes}"
            raise InvalidInput(why, operation=operation, subject=self.segment.segment_id)

    def check_is(self, message: HandOver) -> None:
        if (message.segment_id, message.generation) != (self.segment.segment_id, self.segment.generation):
            raise InvalidInput("the segment is not the one that was lent", operation="hand over", subject=message.segment_id)
        self.check_size(message.size_bytes, "hand over")

    def to_wire(self) -> SegmentGrant:
        return as_lent(self.segment)


def as_lent(segment: Segment) -> SegmentGrant:
    """The slot as its client is told of it."""
    return SegmentGrant(segment_id=segment.segment_id, generation=segment.generation, capacity_bytes=segment.capacity_bytes)


class Grants:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._grants: dict[tuple[str, int], Grant] = {}

    def of(self, attempt_id: str, rank: int, session: str) -> Grant | None:
        grant = self._grants.get((attempt_id, rank))
        return grant if grant is not None and grant.session == session else None

    def with_slot(self, segment_id: str, generation: int, session: str) -> Grant | None:
        """The grant of this use of a slot."""
        wanted = (segment_id, generation, session)
        return next((g for g in self._grants.values() if (g.segment.segment_id, g.segment.generation, g.session) == wanted), None)

    def any_of(self, attempt_id: str) -> bool:
        """Whether some rank of the attempt still copies."""
        return any(attempt == attempt_id for attempt, _ in self._grants)

    async def make(self, attempt_id: str, request: OpenAttempt, new_object: NewObject, session: str, *, timeout_s: float) -> Grant:
        """The grant that this rank has, or one of the slot that it brought, or of one that is free within `timeout_s`.

        Errors as `SegmentPool.acquire`; InvalidInput for a slot that is not this session's to bring.
        """
        held = self.of(attempt_id, request.rank, session)
        if held is not None and held.segment.capacity_bytes >= request.size_bytes:
            return held
        if request.segment is not None:
            segment = self._brought(request.segment, session)
        else:
            pool = self._node.pool
            segment = await self._node.run(self._node.read_executor, pool.acquire, session, request.size_bytes, timeout_s=timeout_s)
        lineage = Lineage(request.path, request.rank) if request.incremental else None
        grant = Grant(attempt_id, request.rank, session, new_object, segment, lineage)
        grant.check_size(request.size_bytes, "save")
        self._grants[attempt_id, request.rank] = grant
        return grant

    def _brought(self, brought: SegmentGrant, session: str) -> Segment:
        segment = self._node.pool.lent(brought.segment_id, session)
        # In this use: a grant whose client never heard of it, and gave the slot back, says nothing of the next.
        taken = any(grant.segment == segment for grant in self._grants.values())
        if taken or segment.generation != brought.generation:
            why = "the segment is lent for another save" if taken else "the segment was lent anew since"
            raise InvalidInput(why, operation="save", subject=brought.segment_id)
        return segment

    def end(self, grant: Grant) -> None:
        """The slot is handed over."""
        del self._grants[grant.attempt_id, grant.rank]

    def give_up(self, attempt_id: str, session: str) -> None:
        """The client wants nothing with the attempt any more: its slots are free."""
        for grant in [grant for grant in self._grants.values() if grant.attempt_id == attempt_id and grant.session == session]:
            self.end(grant)
            self._node.pool.release(grant.segment)

    def session_lost(self, session: str) -> None:
        for grant in [grant for grant in self._grants.values() if grant.session == session]:
            self.end(grant)
        self._node.pool.owner_gone(session)
