"""Passing on to running jobs that somebody wants a checkpoint, their ranks' agreement among them, and what came of it to who asked.

All of it is in the catalog, so jobs on several nodes hear of it, and a daemon that is started again goes on. The ranks that follow on this
node share one look, every `LOOK_S` and when something was asked for or said here. A signal that ends a job often is for the daemon,
too: one that is told to end stays for the jobs that follow, as long as they have time for their last snapshot. On the event loop.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Literal

from ckptstore.catalog.model import Agreement
from ckptstore.catalog.model import SnapshotRequest as Asked
from ckptstore.errors import NotFound
from ckptstore.paths import check_folder
from ckptstore.snapshot_messages import AskSnapshot, RankHold, SnapshotAgreement, SnapshotInfo, SnapshotRequest, SnapshotRequests
from ckptstore_server.node import Node
from ckptstore_server.readers.changes import LOOK_S
from ckptstore_server.sessions import Sessions

#: Between two questions of a rank that follows, in seconds.
BETWEEN_S = 2.0
#: Jobs whose agreements are remembered for a moment.
JOBS_AT_ONCE = 64


@dataclass
class _Follower:
    grace_s: float
    asking: int = 0
    heard_s: float = 0.0


class Snapshots:
    def __init__(self, node: Node, sessions: Sessions) -> None:
        self._node = node
        self._sessions = sessions
        self._followers: dict[str, _Follower] = {}
        self._catalog = node.catalog
        self._open: list[Asked] = []
        self._looked_s = float("-inf")
        self._looking = asyncio.Lock()
        self._agreed: dict[tuple[str, str], tuple[float, Agreement]] = {}  # when it was looked at
        self.stopping = False

    def stop(self) -> None:
        """Nobody is held any longer, so that the daemon can end."""
        self.stopping = True
        self._node.board.announce()

    # --- who asks ----------------------------------------------------------------------------------------------------------------

    async def ask(self, message: AskSnapshot) -> SnapshotInfo:
        asked = await self._node.query(
            self._catalog.ask_for_snapshot, message.path, message.why, token=message.token, for_s=message.for_s
        )
        self._looked_s = float("-inf")
        self._node.board.announce()
        return await self._info(asked.request_id)

    async def info(self, request_id: str, until: Literal["heard", "answered"], timeout_s: float) -> SnapshotInfo:
        """What became of it, once a rank has heard of it, a checkpoint answered it or it is too late; at the latest after `timeout_s`."""

        def is_settled(info: SnapshotInfo) -> bool:
            return self.stopping or info.state != "asked" or (until == "heard" and info.ranks > 0)

        return await self._node.settled(lambda: self._info(request_id), is_settled, timeout_s)

    async def _info(self, request_id: str) -> SnapshotInfo:
        asked = await self._node.query(self._catalog.snapshot_request, request_id)
        jobs = await self._node.query(self._catalog.agreements, request_id)
        info = SnapshotInfo(
            request_id=request_id,
            path=asked.path,
            why=asked.why,
            state="asked" if asked.is_open else "expired" if asked.answered_by is None else "answered",
            ranks=sum(job.ranks for job in jobs),
            world_size=sum(job.world_size for job in jobs),
            at_step=next((job.at_step for job in jobs if job.at_step is not None), None),
        )
        if asked.answered_by is None:
            return info
        try:
            found = await self._node.query(self._catalog.publication, asked.answered_by)
        except NotFound:  # removed since
            return info
        where = found.path if found.live else None
        return info.model_copy(update={"checkpoint": where, "step": found.step, "durability": found.durability})

    # --- the ranks of jobs -------------------------------------------------------------------------------------------------------

    async def jobs_over(self) -> None:
        """Return when no rank on this node follows any more, or the longest that any of them may take is over."""
        deadline = time.monotonic() + max((follower.grace_s for follower in self._present()), default=0.0)
        while self._present() and time.monotonic() < deadline:
            await self._node.board.heard(self._node.board.ticket(), LOOK_S)

    def _present(self) -> list[_Follower]:
        now_s = time.monotonic()
        self._followers = {
            session: follower
            for session, follower in self._followers.items()
            if self._sessions.is_open(session) and (follower.asking or now_s - follower.heard_s < BETWEEN_S)
        }
        return [*self._followers.values()]

    async def following(
        self, path: str, token: str, after: int, timeout_s: float, *, session: str, grace_s: float
    ) -> SnapshotRequests:
        """What is asked of a job that saves in a folder, after the request of that number: as soon as something is."""
        path = check_folder(path, operation="follow requests")
        follower = self._followers.setdefault(session, _Follower(grace_s))
        follower.asking += 1
        try:
            return await self._following(path, token, after, timeout_s)
        finally:
            follower.asking -= 1
            follower.heard_s = time.monotonic()

    async def _following(self, path: str, token: str, after: int, timeout_s: float) -> SnapshotRequests:
        deadline = time.monotonic() + timeout_s
        while True:
            ticket = self._node.board.ticket()
            mine = [asked for asked in await self._look() if asked.path == path and asked.number > after and asked.token in ("", token)]
            left_s = deadline - time.monotonic()
            if mine or left_s <= 0 or self.stopping:
                return SnapshotRequests(requests=[_request(asked) for asked in mine])
            await self._node.board.heard(ticket, min(LOOK_S, left_s))

    async def _look(self) -> list[Asked]:
        """All that is open; what others have looked up just now."""
        async with self._looking:
            if time.monotonic() - self._looked_s >= LOOK_S:
                self._looked_s = time.monotonic()
                self._open = await self._node.query(self._catalog.open_snapshot_requests)
            return self._open

    async def hold(self, request_id: str, message: RankHold) -> SnapshotAgreement:
        given = message.token, message.rank, message.world_size, message.holds_at
        agreed = await self._node.query(self._catalog.hold_rank, request_id, *given)
        async with self._looking:  # after a look that is under way, which may have been before this
            self._agreed.pop((request_id, message.token), None)
        self._node.board.announce()
        return _agreement(agreed)

    async def agreement(self, request_id: str, token: str, timeout_s: float) -> SnapshotAgreement:
        """Once all ranks of the job have spoken, or never will; at the latest after `timeout_s`."""
        agreed = await self._node.settled(
            lambda: self._look_at_job(request_id, token),
            lambda found: self.stopping or found.closed or found.at_step is not None,
            timeout_s,
        )
        return _agreement(agreed)

    async def _look_at_job(self, request_id: str, token: str) -> Agreement:
        """What the ranks of a job have said; all that are on this node share a look."""
        async with self._looking:
            looked_s, found = self._agreed.get((request_id, token), (float("-inf"), None))
            if found is None or time.monotonic() - looked_s >= LOOK_S:
                looked_s, found = time.monotonic(), await self._node.query(self._catalog.agreement, request_id, token)
                if len(self._agreed) >= JOBS_AT_ONCE:
                    self._agreed.clear()
                self._agreed[request_id, token] = looked_s, found
            return found


def _request(asked: Asked) -> SnapshotRequest:
    return SnapshotRequest(
        request_id=asked.request_id, number=asked.number, path=asked.path, why=asked.why, ends_job=bool(asked.token)
    )


def _agreement(agreed: Agreement) -> SnapshotAgreement:
    return SnapshotAgreement(ranks=agreed.ranks, at_step=agreed.at_step, closed=agreed.closed)
