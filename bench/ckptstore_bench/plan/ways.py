"""What does each way of saving cost a job: with the memory tier, guarded or not, without it, and straight to the shared tier?

A way is a stall per save, a time until a save survives a failure, and a restart. After a failure that takes no node, a way with memory goes
on from what it handed over last; after one that does, from what the first shared tier holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckptstore_bench.plan.demand import BUSY_LIMIT, TierDemand, shortest_interval_s
from ckptstore_bench.plan.intervals import daly_interval_s, goodput, young_interval_s
from ckptstore_bench.plan.job import Job
from ckptstore_bench.plan.speeds import MEMORY

#: What a guarded save leaves of the stall (hooks, scalars) where the copy fits behind forward and backward: the bound
#: that `bench save` is held to.
GUARDED_STALL_S = 0.002


@dataclass(frozen=True)
class Way:
    name: str
    stall_s: float
    #: on average over failures with and without the loss of a node: how long after the call a save survives
    safe_after_s: float
    #: from a failure until work goes on
    restart_s: float
    young_s: float
    daly_s: float
    #: Daly's interval, or the shortest that the tiers sustain if that is longer
    best_interval_s: float
    #: None: some tier falls behind at the job's interval
    goodput_at_interval: float | None
    goodput_at_best: float
    #: below this interval some tier that takes part falls behind for ever
    shortest_s: float

    def holds_at(self, interval_s: float) -> bool:
        return interval_s >= self.shortest_s


def ways(job: Job, demands: list[TierDemand]) -> list[Way]:
    """Each way that the tiers allow, the best first."""
    memory = next((found for found in demands if found.tier.name == MEMORY), None)
    local = next((found for found in demands if found.tier.name != MEMORY and not found.tier.shared), None)
    shared = next((found for found in demands if found.tier.shared), None)
    first = local or shared
    if first is None:
        return []
    floor_s = shortest_interval_s(demands)
    found: list[Way] = []
    if memory is not None:
        copy_s = memory.write_s
        behind = (first.write_s if first is not shared else 0.0) + (shared.write_s if shared else 0.0)
        safe_after_s = job.node_losses * behind if shared else 0.0
        restart_s = _restart_s(job, memory, shared)
        found.append(_way(job, "memory tier, guarded", guarded_stall_s(job, copy_s), safe_after_s, restart_s, floor_s))
        found.append(_way(job, "memory tier, plain copy", copy_s, safe_after_s, restart_s, floor_s))
    if local is not None:
        safe_after_s = job.node_losses * shared.write_s if shared else 0.0
        name = f"no memory tier, blocks until {local.tier.name}"
        found.append(_way(job, name, local.write_s, safe_after_s, _restart_s(job, local, shared), floor_s))
    if shared is not None:
        name = f"no tiers, blocks until {shared.tier.name}"
        found.append(_way(job, name, shared.write_s, 0.0, job.relaunch_s + shared.read_each_s, floor_s=0.0))
    return found


def guarded_stall_s(job: Job, copy_s: float) -> float:
    """What is left of the copy when forward and backward are over."""
    uncovered_s = 0.0 if job.overlap_s is None else max(0.0, copy_s - job.overlap_s)
    return min(copy_s, max(GUARDED_STALL_S, uncovered_s))


def _restart_s(job: Job, near: TierDemand, shared: TierDemand | None) -> float:
    """All nodes read what they have; a replaced node reads from the shared tier, alone, and all wait for it."""
    if shared is None:
        return job.relaunch_s + near.read_once_s
    return job.relaunch_s + (1 - job.node_losses) * near.read_once_s + job.node_losses * max(near.read_once_s, shared.read_alone_s)


def _way(job: Job, name: str, stall_s: float, safe_after_s: float, restart_s: float, floor_s: float) -> Way:
    lost_s, shortest_s = restart_s + safe_after_s, floor_s * BUSY_LIMIT
    daly_s = daly_interval_s(stall_s, job.mtbf_s)
    best_s = max(daly_s, floor_s)
    return Way(
        name,
        stall_s,
        safe_after_s,
        restart_s,
        young_interval_s(stall_s, job.mtbf_s),
        daly_s,
        best_s,
        goodput(job.interval_s, stall_s, lost_s, job.mtbf_s) if job.interval_s >= shortest_s else None,
        goodput(best_s, stall_s, lost_s, job.mtbf_s),
        shortest_s,
    )
