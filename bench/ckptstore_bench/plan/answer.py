"""The whole plan of a job: its numbers, and in sentences what they mean."""

from __future__ import annotations

from dataclasses import dataclass

from ckptstore_bench.plan.demand import TierDemand, demand, shortest_interval_s
from ckptstore_bench.plan.job import Job
from ckptstore_bench.plan.quantities import duration, scaled
from ckptstore_bench.plan.speeds import MEMORY, TierSpeed
from ckptstore_bench.plan.ways import Way, ways


@dataclass(frozen=True)
class Plan:
    job: Job
    demands: list[TierDemand]
    ways: list[Way]

    def sentences(self) -> list[str]:
        return [*_about_bytes(self.job), *_about_tiers(self), *_about_reading(self), *_about_goodput(self)]


def make_plan(job: Job, tiers: tuple[TierSpeed, ...]) -> Plan:
    demands = [demand(job, tier) for tier in tiers]
    return Plan(job, demands, ways(job, demands))


def _about_bytes(job: Job) -> list[str]:
    total, node = scaled(job.checkpoint_bytes, "B"), scaled(job.node_bytes, "B")
    rank = scaled(job.checkpoint_bytes / job.ranks, "B")
    needed = scaled(job.checkpoint_bytes / job.interval_s, "B/s")
    each = scaled(job.node_bytes / job.interval_s, "B/s")
    origin = f"{job.nodes:,} nodes × {job.ranks_per_node} ranks"
    return [
        f"{total} every {duration(job.interval_s)} from {origin} is {node} a node and {rank} a rank: {needed} into the shared tiers, "
        f"{each} from each node.",
        f"Memory for the snapshots of a node: {scaled(job.memory_bytes, 'B')}, in {job.slots} slots for each rank.",
    ]


def _about_tiers(plan: Plan) -> list[str]:
    durable = [found for found in plan.demands if found.tier.name != MEMORY]
    if not durable:
        return ["Give the tiers' speeds, or a file of `bench tiers`, to see what they allow."]
    slow = [found for found in durable if found.verdict != "keeps up"]
    if not slow:
        return [f"Every tier keeps up; the shortest interval that all sustain is {duration(shortest_interval_s(plan.demands))}."]
    return [
        f"{found.tier.name} {found.verdict}: it needs {duration(found.write_s)} for what comes every {duration(plan.job.interval_s)}; "
        f"{scaled(found.needed_node, 'B/s')} a node are needed, and it gives {scaled(found.allowed_write, 'B/s')}."
        for found in slow
    ]


def _about_reading(plan: Plan) -> list[str]:
    job = plan.job
    if job.tensor_parallel == 1:
        return []
    once, each = scaled(job.read_once_bytes * job.nodes, "B"), scaled(job.read_each_bytes * job.nodes, "B")
    told = [
        f"Read by groups of {job.tensor_parallel} tensor-parallel ranks that want the same bytes: {once} leave the tier when a node reads "
        f"each byte once, {each} when each rank reads for itself."
    ]
    for found in plan.demands:
        if found.tier.name != MEMORY:
            told.append(f"From {found.tier.name} that takes {duration(found.read_once_s)}, or {duration(found.read_each_s)}.")
    return told


def _about_goodput(plan: Plan) -> list[str]:
    if not plan.ways:
        return []
    best = max(plan.ways, key=lambda way: way.goodput_at_best)
    told = [
        f"Failing every {duration(plan.job.mtbf_s)}, the job loses least with {best.name}, saving every {duration(best.best_interval_s)}: "
        f"{best.goodput_at_best:.2%} of the time is work."
    ]
    with_memory = [way for way in plan.ways if way.name.startswith(MEMORY)]
    without = [way for way in plan.ways if not way.name.startswith(MEMORY)]
    if with_memory and without:
        gain_s = 86_400 * (max(way.goodput_at_best for way in with_memory) - max(way.goodput_at_best for way in without))
        told.append(f"Beside the best way without it, the memory tier gives {duration(max(gain_s, 0.0))} of work back each day.")
    if not any(found.tier.shared for found in plan.demands):
        told.append("No tier is shared: a lost node takes its part of every checkpoint with it, and these figures do not count that.")
    return told
