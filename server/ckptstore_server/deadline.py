"""Will a tier have in time what was published? `drain_within` of its configuration, counted from the publishing of each checkpoint.

Checkpoints leave the queue in order, so the rate that is needed is that of the worst prefix: for each checkpoint, the bytes up to and
including it over the time that is left to it. Drains are let through at that rate, with some to spare, whatever training needs; the
less time is left, the higher it is, and a checkpoint that is late goes as fast as it can.

An alarm is raised when a checkpoint is late, or is going to be: the tier's own bandwidth limit is below the rate that is needed, or
that rate was asked for and not reached. It goes when the cause does. Thread-safe: a plan is one value, replaced as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ckptstore.catalog.model import Waiting
from ckptstore.wire import DrainAlarm

#: The pace is so much above what is needed: for the commit record, and for what a tier verifies after the last block.
SPARE = 1.25
#: What was reached is judged over this long, but no longer than a quarter of the time allowed.
JUDGED_S = 30.0


@dataclass(frozen=True)
class Plan:
    """What the deadline asks for, as of the last look. No work: nothing is asked."""

    needed_bytes_s: float = 0.0
    oldest_age_s: float = 0.0
    waiting_bytes: int = 0

    @property
    def pace_bytes_s(self) -> float:
        return SPARE * self.needed_bytes_s


def plan(waiting: Sequence[Waiting], moved_bytes: int, within_s: float) -> Plan:
    """`waiting` in the order of the queue; `moved_bytes` of it have left already, with objects that are under way."""
    if not waiting:
        return Plan()
    needed, total = 0.0, -moved_bytes
    for checkpoint in waiting:
        total += checkpoint.size_bytes
        left_s = within_s - checkpoint.age_s
        needed = max(needed, math.inf if left_s <= 0 else max(0, total) / left_s)
    return Plan(needed, max(checkpoint.age_s for checkpoint in waiting), max(0, total))


def alarm(current: Plan, *, within_s: float, reached_bytes_s: float, limit_bytes_s: int | None) -> DrainAlarm | None:
    """What an operator must know, or None. `reached_bytes_s`: over `judged_over_s(within_s)`."""
    late_s, waiting, needed = current.oldest_age_s - within_s, _megabytes(current.waiting_bytes), current.needed_bytes_s
    if late_s > 0:
        what = f"late by {late_s:.0f} s: {waiting} still wait, and {_megabytes(reached_bytes_s)}/s go"
        return DrainAlarm(kind="late", late_s=late_s, needed_bytes_s=None, reached_bytes_s=reached_bytes_s, what=what)
    if limit_bytes_s is not None and limit_bytes_s < needed:
        but = f"its bandwidth_limit is {_megabytes(limit_bytes_s)}/s"
    elif current.oldest_age_s > judged_over_s(within_s) and reached_bytes_s < needed:
        but = f"{_megabytes(reached_bytes_s)}/s go"
    else:
        return None
    what = f"will be late: {waiting} need {_megabytes(needed)}/s to be in time, but {but}"
    return DrainAlarm(kind="at risk", late_s=0.0, needed_bytes_s=needed, reached_bytes_s=reached_bytes_s, what=what)


def judged_over_s(within_s: float) -> float:
    return min(JUDGED_S, within_s / 4)


def _megabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
