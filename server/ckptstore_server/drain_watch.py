"""Do drains keep up? A look at what waits, once a second: the pace that each deadline needs, the alarms, and what overrides quiet.

Three things are more urgent than being quiet: a deadline (`drain_within`; only so much as it needs), a fast tier above its high-water
mark, from which nothing may be evicted before it is drained, and a queue that is half full, since both end in saves that wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ckptstore.catalog.model import Waiting
from ckptstore.errors import WaitTimeout
from ckptstore_server.deadline import Plan, alarm, judged_over_s, plan
from ckptstore_server.drain import Drainer
from ckptstore_server.node import Node
from ckptstore_server.pressure import job_folders
from ckptstore_server.sessions import Sessions
from ckptstore_server.tier_handle import TierHandle

#: Checkpoints that are looked at; what waits behind so many is summed up when they are gone.
LOOKED_AT = 1000
#: Fraction of `queue_limit` above which drains are hurried.
QUEUE_MARK = 0.5
#: Seconds between two looks at where the jobs' cgroups are.
JOBS_LOOK_S = 10.0


class DrainWatch:
    def __init__(self, node: Node, drainer: Drainer, sessions: Sessions, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._node = node
        self._drainer = drainer
        self._sessions = sessions
        self._clock = clock
        self._jobs_at_s = -JOBS_LOOK_S

    async def look(self) -> None:
        """At tiers that have a deadline; at all while something drains: a daemon at rest asks nothing."""
        waiting_bytes, draining = 0, self._drainer.busy
        for handle in self._node.durable:
            if not draining and handle.settings.drain_within is None:
                continue
            waiting = await self._node.query(self._node.catalog.waiting, handle.name, limit=LOOKED_AT)
            waiting_bytes = max(waiting_bytes, sum(checkpoint.size_bytes for checkpoint in waiting))
            self._heed_deadline(handle, waiting)
        if waiting_bytes:
            full = await self._node.run(self._node.upkeep_executor, self._fast_tier_is_full)
            self._node.quiet.suspended = full or waiting_bytes > QUEUE_MARK * self._node.settings.queue_limit
            self._look_for_jobs()

    def _heed_deadline(self, handle: TierHandle, waiting: list[Waiting]) -> None:
        within_s = handle.settings.drain_within
        if within_s is None:
            return
        current = plan(waiting, handle.lane.moved_bytes(), within_s)
        if current != handle.lane.plan or current != Plan():
            handle.lane.follow(current)
        reached = handle.lane.passed.rate_bytes_s(judged_over_s(within_s))
        before = handle.alarm
        handle.alarm = alarm(current, within_s=within_s, reached_bytes_s=reached, limit_bytes_s=handle.lane.limit_bytes_s)
        if handle.alarm is not None and (before is None or before.kind != handle.alarm.kind):
            self._node.remark(f"drain into {handle.name}", WaitTimeout(handle.alarm.what, operation="drain", tier=handle.name))

    def _fast_tier_is_full(self) -> bool:
        return any(handle.opened is not None and handle.fill() >= handle.settings.high_water for handle in self._node.node_local)

    def _look_for_jobs(self) -> None:
        """Whose cgroups' pressure is that of training."""
        if self._clock() - self._jobs_at_s >= JOBS_LOOK_S:
            self._jobs_at_s = self._clock()
            self._node.gauge.job_folders = job_folders(self._sessions.pids())
