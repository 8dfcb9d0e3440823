"""What the daemon does when nobody asks: expire attempts, evict, delete, settle records, give memory back, and leave when not needed.

Each duty is a loop of its own on the event loop; a failing duty notes its error and goes on at the next turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from ckptstore.catalog.model import AttemptState
from ckptstore.errors import CkptStoreError, NotFound
from ckptstore_server.services import Services

#: Seconds between turns.
EXPIRY_TURN_S = 5.0
EVICTION_TURN_S = 2.0
DELETION_TURN_S = 5.0
RECORDS_TURN_S = 2.0
MEMORY_TURN_S = 15.0
IDLE_TURN_S = 1.0
DRAINS_TURN_S = 1.0
COPIES_TURN_S = 5.0
ATTACHMENTS_TURN_S = 5.0
SCRUB_TURN_S = 30.0
READERS_TURN_S = 5.0
RETENTION_TURN_S = 10.0
TRASH_TURN_S = 30.0


class Upkeep:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._node = services.node
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        duties: list[tuple[str, float, bool, Callable[[], Awaitable[object]]]] = [
            ("expire attempts", EXPIRY_TURN_S, False, self._expire),
            ("evict", EVICTION_TURN_S, True, self._services.evictor.keep_below_mark),
            ("delete", DELETION_TURN_S, True, self._services.deletion.work_off),
            ("keep what policies want", RETENTION_TURN_S, True, self._services.keeper.apply),
            ("empty the trash", TRASH_TURN_S, False, self._services.keeper.empty_trash),
            ("watch drains", DRAINS_TURN_S, False, self._services.drain_watch.look),
            ("notice emptied tiers", RECORDS_TURN_S, False, self._notice_emptied),
            ("commit records", RECORDS_TURN_S, True, self._settle),
            ("records of attachments", ATTACHMENTS_TURN_S, False, self._services.attachments_records.settle),
            ("give memory back", MEMORY_TURN_S, False, self._give_back),
            ("close idle readers", READERS_TURN_S, False, self._close_idle_readers),
            ("look after copies", COPIES_TURN_S, False, self._look_after_copies),
            ("scrub copies", SCRUB_TURN_S, False, self._services.scrub.turn),
            ("leave when idle", IDLE_TURN_S, False, self._leave_when_idle),
        ]
        for name, turn_s, on_change, duty in duties:
            self._tasks.append(asyncio.create_task(self._loop(name, turn_s, on_change, duty), name=name))
        for handle in self._node.handles:  # one that is not durable has recalls that were cut short
            self._tasks.append(asyncio.create_task(self._services.drainer.run(handle), name=f"drain into {handle.name}"))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _loop(self, name: str, turn_s: float, on_change: bool, duty: Callable[[], Awaitable[object]]) -> None:
        """`on_change`: also look when the board announces something, at most once a quarter of the turn."""
        while True:
            ticket = self._node.board.ticket()
            try:
                await duty()
            except Exception as error:  # noqa: BLE001 - the top of a task: a duty that fails is tried again at its next turn
                self._node.remark(name, error)
            if on_change:
                await asyncio.sleep(turn_s / 4)
                await self._node.board.heard(ticket, turn_s * 3 / 4)
            else:
                await asyncio.sleep(turn_s)

    async def _expire(self) -> None:
        idle_s = self._node.settings.attempt_timeout_s
        self._services.attempts.ended(await self._node.query(self._node.catalog.expire, idle_s))
        for session in self._services.sessions.idle_remote(idle_s):
            self._services.sessions.close(session)
            await self._services.attempts.session_lost(session)

    async def _settle(self) -> None:
        """Records owed for checkpoints that another node published, or that a failure left; and publishes that were interrupted."""
        for view in await self._node.query(self._node.catalog.attempts, [AttemptState.COMPLETE], node=self._node.node_id):
            if view.idle_s > RECORDS_TURN_S:
                try:
                    await self._services.publisher.publish(view)
                except CkptStoreError as error:
                    self._node.remark("publish", error)
        await self._services.publisher.settle_all()

    async def _notice_emptied(self) -> None:
        """Say what was lost with a root that was empty when it was opened: a disk was replaced, or wiped."""
        for handle in self._node.handles:
            if lost := handle.lost_objects:
                handle.lost_objects = 0
                why = f"the tier was emptied: {lost} objects are missing"
                self._node.remark(f"open {handle.name}", NotFound(why, tier=handle.name, hint="they are copied again from other tiers"))

    async def _give_back(self) -> None:
        await self._node.run(self._node.upkeep_executor, self._node.pool.give_back, self._node.settings.memory.idle_release_s)

    async def _close_idle_readers(self) -> None:
        await self._node.run(self._node.upkeep_executor, self._services.tree.close_idle)

    async def _look_after_copies(self) -> None:
        """The cache opens when its tier has; what others need of the disk it gives back; its counts are written down."""
        cache = self._services.cache
        await self._node.run(self._node.upkeep_executor, cache.start)
        await self._node.run(self._node.upkeep_executor, cache.give_way)
        await self._node.run(self._node.upkeep_executor, cache.save_records)

    async def _leave_when_idle(self) -> None:
        """An auto-started daemon goes when no client is connected, nothing is being saved, and no copy or commit record is owed."""
        idle_exit_s = self._node.settings.idle_exit_s
        sessions = self._services.sessions
        if idle_exit_s is None or len(sessions) or time.monotonic() - sessions.last_use_s < idle_exit_s:
            return
        if self._services.attempts.busy or self._services.drainer.busy:
            return
        # What waits for room in a full tier is safe in another one, and the next daemon goes on with it.
        full = {handle.name for handle in self._node.durable if handle.state == "full"}
        waiting = [b for b in await self._node.query(self._node.catalog.backlog) if b.tier not in full]
        owed = [await self._node.query(self._node.catalog.owed_records, handle.name, limit=1) for handle in self._node.durable]
        if not any(backlog.objects for backlog in waiting) and not any(owed):
            self._services.request_stop()
