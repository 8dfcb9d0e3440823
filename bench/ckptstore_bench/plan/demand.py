"""Can each tier take the checkpoints in, and how long does it take to give one back?

Every tier gets every checkpoint. One that needs longer than the interval falls behind for ever, and one that needs nearly all of it never
catches up after an outage.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckptstore_bench.plan.job import Job
from ckptstore_bench.plan.speeds import MEMORY, TierSpeed

#: A tier that is busy for a larger part of the time has nothing left to catch up with after an outage.
BUSY_LIMIT = 0.8


@dataclass(frozen=True)
class TierDemand:
    """One tier under one job; speeds in bytes per second."""

    tier: TierSpeed
    #: what one node, and all of them, must write to be done when the next checkpoint comes
    needed_node: float
    needed_in_all: float
    #: what one node gets when all write, or read
    allowed_write: float
    allowed_read: float
    write_s: float
    #: all nodes read: each byte once a node, or once for every rank that wants it
    read_once_s: float
    read_each_s: float
    #: one node reads alone, as after its loss
    read_alone_s: float
    busy: float

    @property
    def verdict(self) -> str:
        if self.busy > 1:
            return "falls behind"
        return "keeps up" if self.busy <= BUSY_LIMIT else "never catches up"

    @property
    def shortest_interval_s(self) -> float:
        return self.write_s / BUSY_LIMIT


def demand(job: Job, tier: TierSpeed) -> TierDemand:
    write, read = tier.write(job.nodes), tier.read(job.nodes)
    return TierDemand(
        tier,
        needed_node=job.node_bytes / job.interval_s,
        needed_in_all=job.checkpoint_bytes / job.interval_s,
        allowed_write=write,
        allowed_read=read,
        write_s=job.node_bytes / write,
        read_once_s=job.read_once_bytes / read,
        # Out of its own memory each rank copies what it wants in any case.
        read_each_s=job.read_each_bytes / read,
        read_alone_s=job.read_once_bytes / tier.read(1),
        busy=job.node_bytes / write / job.interval_s,
    )


def shortest_interval_s(demands: list[TierDemand]) -> float:
    """Below this interval some tier does not keep up; memory aside, whose copy is the stall."""
    return max((found.shortest_interval_s for found in demands if found.tier.name != MEMORY), default=0.0)
