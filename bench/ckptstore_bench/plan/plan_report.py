"""A plan as a report: its tables, the plot of goodput over the interval, and its sentences as notes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckptstore_bench import machine
from ckptstore_bench.plan.answer import Plan
from ckptstore_bench.plan.demand import BUSY_LIMIT
from ckptstore_bench.plan.intervals import goodput
from ckptstore_bench.plan.speeds import MEMORY
from ckptstore_bench.report import Bars, Cell, Column, Lines, Report, Table

LIMIT = (
    "the speeds above, {source}; failures that come at random, on average every MTBF (Young 1974, Daly 2006). "
    "A plan is arithmetic: nothing was run."
)
#: The plot reaches from this part of the shortest best interval to this multiple of the longest.
_PLOT_MARGIN = 8
_PLOT_POINTS = 60


def plan_report(plan: Plan, *, settings: dict[str, Any], source: str) -> Report:
    return Report(
        command="bench plan",
        title="What the job needs, what the tiers allow, how often to save",
        limit=LIMIT.format(source=source),
        rounds=1,
        settings=settings,
        machine=machine.describe(Path.cwd()),
        tables=tuple(table for table in (_job(plan), _tiers(plan), _reading(plan), _ways(plan)) if table.rows),
        plots=(_busy(plan), _goodput(plan)) if plan.ways else (),
        notes=tuple(plan.sentences()),
    )


def _job(plan: Plan) -> Table:
    job = plan.job
    columns = (
        Column(key="checkpoint_bytes", heading="checkpoint", kind="bytes"),
        Column(key="node_bytes", heading="a node", kind="bytes"),
        Column(key="rank_bytes", heading="a rank", kind="bytes"),
        Column(key="memory_bytes", heading="memory a node", kind="bytes"),
        Column(key="interval_s", heading="interval", kind="seconds"),
        Column(key="needed_bytes_per_s", heading="needed in all", kind="bytes_per_s"),
        Column(key="needed_node_bytes_per_s", heading="needed a node", kind="bytes_per_s"),
        Column(key="mtbf_s", heading="MTBF", kind="seconds"),
    )
    row: dict[str, Cell] = {
        "checkpoint_bytes": job.checkpoint_bytes,
        "node_bytes": job.node_bytes,
        "rank_bytes": job.checkpoint_bytes / job.ranks,
        "memory_bytes": job.memory_bytes,
        "interval_s": job.interval_s,
        "needed_bytes_per_s": job.checkpoint_bytes / job.interval_s,
        "needed_node_bytes_per_s": job.node_bytes / job.interval_s,
        "mtbf_s": job.mtbf_s,
    }
    return Table(title="The job", columns=columns, rows=(row,))


def _tiers(plan: Plan) -> Table:
    columns = (
        Column(key="tier", heading="tier"),
        Column(key="needed_bytes_per_s", heading="needed a node", kind="bytes_per_s"),
        Column(key="allowed_bytes_per_s", heading="allowed a node", kind="bytes_per_s"),
        Column(key="write_s", heading="takes a checkpoint in", kind="seconds"),
        Column(key="busy_percent", heading="busy", kind="percent"),
        Column(key="verdict", heading=""),
    )
    rows: tuple[dict[str, Cell], ...] = tuple(
        {
            "tier": found.tier.name,
            "needed_bytes_per_s": found.needed_node,
            "allowed_bytes_per_s": found.allowed_write,
            "write_s": found.write_s,
            "busy_percent": found.busy * 100,
            "verdict": found.verdict,
        }
        for found in plan.demands
    )
    return Table(title="Saving: each tier, while all nodes write", columns=columns, rows=rows)


def _reading(plan: Plan) -> Table:
    columns = (
        Column(key="tier", heading="tier"),
        Column(key="allowed_bytes_per_s", heading="allowed a node", kind="bytes_per_s"),
        Column(key="once_bytes", heading="in all, once a node", kind="bytes"),
        Column(key="once_s", heading="takes", kind="seconds"),
        Column(key="each_bytes", heading="in all, each rank alone", kind="bytes"),
        Column(key="each_s", heading="takes", kind="seconds"),
    )
    rows: tuple[dict[str, Cell], ...] = tuple(
        {
            "tier": found.tier.name,
            "allowed_bytes_per_s": found.allowed_read,
            "once_bytes": plan.job.read_once_bytes * plan.job.nodes,
            "once_s": found.read_once_s,
            "each_bytes": plan.job.read_each_bytes * plan.job.nodes,
            "each_s": found.read_each_s,
        }
        for found in plan.demands
    )
    group = plan.job.tensor_parallel
    groups = f"groups of {group} ranks want the same bytes" if group > 1 else "each rank its own bytes"
    return Table(title=f"Reading back: all nodes at once, {groups}", columns=columns, rows=rows)


def _ways(plan: Plan) -> Table:
    columns = (
        Column(key="way", heading="way"),
        Column(key="stall_s", heading="stall", kind="seconds"),
        Column(key="safe_after_s", heading="safe after", kind="seconds"),
        Column(key="restart_s", heading="restart", kind="seconds"),
        Column(key="goodput_percent", heading="goodput at the interval", kind="percent"),
        Column(key="young_s", heading="Young", kind="seconds"),
        Column(key="daly_s", heading="Daly", kind="seconds"),
        Column(key="best_interval_s", heading="best that holds", kind="seconds"),
        Column(key="best_goodput_percent", heading="goodput there", kind="percent"),
    )
    rows: tuple[dict[str, Cell], ...] = tuple(
        {
            "way": way.name,
            "stall_s": way.stall_s,
            "safe_after_s": way.safe_after_s,
            "restart_s": way.restart_s,
            "goodput_percent": None if way.goodput_at_interval is None else way.goodput_at_interval * 100,
            "young_s": way.young_s,
            "daly_s": way.daly_s,
            "best_interval_s": way.best_interval_s,
            "best_goodput_percent": way.goodput_at_best * 100,
        }
        for way in plan.ways
    )
    note = "Best that holds: Daly's interval, or the shortest at which every tier keeps up. No goodput: a tier falls behind there."
    return Table(title="Ways to save", columns=columns, rows=rows, note=note)


def _busy(plan: Plan) -> Bars:
    durable = [found for found in plan.demands if found.tier.name != MEMORY]
    return Bars(
        title=f"How busy each tier is; above {BUSY_LIMIT:.0%} it never catches up after an outage",
        kind="percent",
        categories=tuple(found.tier.name for found in durable),
        series={"busy": tuple(found.busy * 100 for found in durable)},
    )


def _goodput(plan: Plan) -> Lines:
    low_s = min(way.daly_s for way in plan.ways) / _PLOT_MARGIN
    high_s = max(way.best_interval_s for way in plan.ways) * _PLOT_MARGIN
    steps = [low_s * (high_s / low_s) ** (number / (_PLOT_POINTS - 1)) for number in range(_PLOT_POINTS)]
    series = {
        way.name: tuple(
            (step_s, 100 * goodput(step_s, way.stall_s, way.restart_s + way.safe_after_s, plan.job.mtbf_s))
            for step_s in steps
            if way.holds_at(step_s)
        )
        for way in plan.ways
    }
    return Lines(
        title="Goodput over the interval, as far as the tiers sustain it",
        x_title="interval",
        x_kind="seconds",
        y_title="goodput",
        y_kind="percent",
        series=series,
        log_x=True,
    )
