"""A run of the workload as a report: DLIO's metrics, those of MLPerf's text, and what MLPerf does not measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckptstore_bench import machine
from ckptstore_bench.checkpoint.measuring import Outcome, Run
from ckptstore_bench.checkpoint.metrics import dlio_metrics, guideline_metrics
from ckptstore_bench.checkpoint.ways import STORE, TORCH
from ckptstore_bench.report import Bars, Cell, Column, Figure, Lines, Report, Samples, Table, samples

LIMIT = (
    "torch.save and fsync of the same tensors by the same ranks on the same device, which is what MLPerf's program (DLIO) does, in turns "
    "with ckptstore in one run. DLIO's GB are GiB."
)
ALONE = "nothing; only ckptstore was run (--against torch compares it with torch.save and fsync). DLIO's GB are GiB."


def checkpoint_report(
    run: Run, outcomes: dict[str, Outcome], *, settings: dict[str, Any], not_comparable: list[str], tier: str, folder: Path
) -> Report:
    beside = TORCH in outcomes
    return Report(
        command="bench checkpoint",
        title=f"MLPerf Storage checkpointing: {run.workload.model}, {run.workload.processes} processes",
        limit=LIMIT if beside else ALONE,
        rounds=run.writes,
        settings=settings | {"tier": tier},
        machine=machine.describe(folder),
        tables=(_size(run), _metrics(run, outcomes), _beyond(outcomes, tier), _each(outcomes)),
        figures=_figures(outcomes) if beside else (),
        plots=(_durations(outcomes), _over_time(outcomes)),
        notes=(_comparable(not_comparable), f"Durable means: in the tier {tier}, fsynced; for torch.save: every file fsynced."),
    )


def _comparable(why_not: list[str]) -> str:
    if why_not:
        return f"Not comparable with published results: {'; '.join(why_not)}."
    return "Sizes, processes, counts and intervals are those of the rules; MLPerf's own checks of a submission were not made."


def _size(run: Run) -> Table:
    columns = (
        Column(key="model", heading="model"),
        Column(key="parameters", heading="parameters, unscaled", kind="count"),
        Column(key="layout", heading="TP × PP × DP, ZeRO"),
        Column(key="processes", heading="processes", kind="count"),
        Column(key="checkpoint_bytes", heading="a checkpoint", kind="bytes"),
        Column(key="largest_rank_bytes", heading="largest rank", kind="bytes"),
        Column(key="files", heading="files", kind="count"),
    )
    load, layout = run.workload, run.workload.parallelism
    row: dict[str, Cell] = {
        "model": load.model,
        "parameters": load.parameters,
        "layout": f"{layout.tensor} × {layout.pipeline} × {layout.data}, {layout.zero}",
        "processes": load.processes,
        "checkpoint_bytes": load.size_bytes,
        "largest_rank_bytes": load.largest_rank_bytes,
        "files": load.file_count,
    }
    note = "ckptstore stores one file for each rank, whatever it holds."
    return Table(title="The workload", columns=columns, rows=(row,), note=note)


def _metrics(run: Run, outcomes: dict[str, Outcome]) -> Table:
    found = {}
    for way, outcome in outcomes.items():
        saves = [[saved.durable_s for saved in one] for one in outcome.saves]
        size_bytes = run.workload.size_bytes
        found[way] = dlio_metrics(size_bytes, saves, outcome.loads) | guideline_metrics(size_bytes, saves, outcome.loads)
    names = list(dict.fromkeys(name for metrics in found.values() for name in metrics))
    rows: tuple[dict[str, Cell], ...] = tuple({"metric": name, **{way: found[way].get(name) for way in found}} for name in names)
    columns = (Column(key="metric", heading="metric"), *(Column(key=way, heading=way, kind="count") for way in found))
    return Table(title="As MLPerf and DLIO count", columns=columns, rows=rows, note="`longest_rank` and `lowest_rank`: by the text.")


def _beyond(outcomes: dict[str, Outcome], tier: str) -> Table:
    tiers = list(dict.fromkeys(name for outcome in outcomes.values() for one in outcome.within for name in one[2][0].reached_s))
    columns = (
        Column(key="way", heading="way"),
        Column(key="stall_s", heading="stall", kind="seconds"),
        Column(key="durable_s", heading=f"durable in {tier}", kind="seconds"),
        Column(key="within_stall_s", heading="stall, in training", kind="seconds"),
        *(Column(key=f"{name}_s", heading=f"in training, until {name}", kind="seconds") for name in tiers),
        Column(key="slow_down_percent", heading="slow-down of the loop", kind="percent"),
    )
    rows = tuple(_beyond_row(way, outcome, tiers) for way, outcome in outcomes.items())
    note = "Of the slowest rank each time. Slow-down: a loop with one save in it beside the same steps alone, which take one interval."
    return Table(title="What MLPerf does not measure", columns=columns, rows=rows, note=note)


def _beyond_row(way: str, outcome: Outcome, tiers: list[str]) -> dict[str, Cell]:
    within = [saved for _, _, saved in outcome.within]
    reached: dict[str, Cell] = {
        f"{name}_s": samples(max(saved.reached_s[name] for saved in one) for one in within if name in one[0].reached_s) for name in tiers
    }
    return {
        "way": way,
        "stall_s": samples(max(saved.stall_s for saved in one) for one in outcome.saves),
        "durable_s": samples(_durable(outcome)),
        "within_stall_s": samples(max(saved.stall_s for saved in one) for one in within),
        **reached,
        "slow_down_percent": _slow_down(outcome),
    }


def _slow_down(outcome: Outcome) -> Samples | None:
    """Of the slowest rank: all wait for it at the next step."""
    return samples((max(with_save) / max(alone) - 1) * 100 for alone, with_save, _ in outcome.within)


def _durable(outcome: Outcome) -> list[float]:
    return [max(saved.durable_s for saved in one) for one in outcome.saves]


def _each(outcomes: dict[str, Outcome]) -> Table:
    columns = (
        Column(key="way", heading="way"),
        Column(key="act", heading="act"),
        Column(key="number", heading="checkpoint", kind="count"),
        Column(key="fastest_rank_s", heading="fastest rank", kind="seconds"),
        Column(key="slowest_rank_s", heading="slowest rank", kind="seconds"),
    )
    rows: list[dict[str, Cell]] = []
    for way, outcome in outcomes.items():
        acts = {"save": [[saved.durable_s for saved in one] for one in outcome.saves], "load": outcome.loads}
        rows += [
            {"way": way, "act": act, "number": number, "fastest_rank_s": min(one), "slowest_rank_s": max(one)}
            for act, durations in acts.items()
            for number, one in enumerate(durations, 1)
        ]
    return Table(title="Each checkpoint", columns=columns, rows=tuple(rows))


def _figures(outcomes: dict[str, Outcome]) -> tuple[Figure, ...]:
    ours, theirs = outcomes[STORE], outcomes[TORCH]

    def ratio(name: str, what: str, above: list[float], below: list[float], *, at_least: bool) -> list[Figure]:
        values = tuple(a / b for a, b in zip(above, below, strict=True))
        return [Figure(name=name, what=what, values=values, bound=1.0, at_least=at_least)] if values else []

    stalls = [[max(saved.stall_s for saved in one) for one in outcome.saves] for outcome in (ours, theirs)]
    loads = [[max(one) for one in outcome.loads] for outcome in (ours, theirs)]
    return (
        *ratio("checkpoint.save", "until durable: torch.save / ckptstore", _durable(theirs), _durable(ours), at_least=True),
        *ratio("checkpoint.stall", "stall: ckptstore / torch.save", stalls[0], stalls[1], at_least=False),
        *ratio("checkpoint.load", "load, cold: torch.load / ckptstore", loads[1], loads[0], at_least=True),
    )


def _durations(outcomes: dict[str, Outcome]) -> Bars:
    series = {
        way: (
            samples(max(saved.stall_s for saved in one) for one in outcome.saves),
            samples(_durable(outcome)),
            samples(max(one) for one in outcome.loads),
        )
        for way, outcome in outcomes.items()
    }
    return Bars(title="The slowest rank of each checkpoint", kind="seconds", categories=("stall", "durable", "load, cold"), series=series)


def _over_time(outcomes: dict[str, Outcome]) -> Lines:
    return Lines(
        title="Until durable, checkpoint by checkpoint",
        x_title="checkpoint",
        x_kind="count",
        y_title="slowest rank",
        y_kind="seconds",
        series={way: tuple(enumerate(map(float, _durable(outcome)), 1)) for way, outcome in outcomes.items() if outcome.saves},
    )
