"""Step times by phase, and how much slower each is than the steps alone around it."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from ckptstore_bench import machine
from ckptstore_bench.interference.phases import PHASES, Phase, Rounds, percentile
from ckptstore_bench.report import Bars, Cell, Column, Figure, Lines, Report, Table, samples

LIMIT = "the same training loop alone, right before and right after each phase; slow-downs are formed phase by phase, round by round."
#: Percent of the mean step: while draining, and when a guarded save comes at every step.
DRAINING_BOUND, GUARDED_BOUND = 5.0, 3.0
_WHAT: dict[Phase, str] = {
    "saving": "a save every {every} steps",
    "guarded": "the same with guard=optimizer",
    "writing": "what was saved before is written to the first durable tier",
    "draining": "what lies there drains to the deepest",
}
_PERCENTILES = (1.0, 5.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0)


def interference_report(rounds: Rounds, *, settings: dict[str, Any], folder: Path) -> Report:
    phases = [phase for phase in PHASES if phase in rounds[0]]
    return Report(
        command="bench interference",
        title="A training loop beside its saves",
        limit=LIMIT,
        rounds=len(rounds),
        settings=settings,
        machine=machine.describe(folder),
        tables=(_table(rounds, phases, settings),),
        figures=tuple(_figures(rounds, phases)),
        plots=(_slow_downs(rounds, phases), _steps(rounds, phases), _distribution(rounds, phases)),
        notes=(
            "A step with a save in it holds the save's whole stall; the mean is over all steps of a phase.",
            "The daemon's settings are the configuration's; with --folder they are the defaults.",
        ),
    )


def slow_downs(rounds: Rounds, phase: Phase) -> tuple[list[float], list[float]]:
    """Percent, one a round: of the mean step, and of the 99th percentile."""
    return [times[phase].mean_slow_down() * 100 for times in rounds], [times[phase].slow_down(99) * 100 for times in rounds]


def _table(rounds: Rounds, phases: list[Phase], settings: dict[str, Any]) -> Table:
    columns = (
        Column(key="phase", heading="phase"),
        Column(key="what", heading=""),
        Column(key="mean_s", heading="step, mean", kind="seconds"),
        Column(key="alone_mean_s", heading="alone", kind="seconds"),
        Column(key="p99_s", heading="step, p99", kind="seconds"),
        Column(key="alone_p99_s", heading="alone", kind="seconds"),
        Column(key="mean_percent", heading="slow-down, mean", kind="percent"),
        Column(key="p99_percent", heading="p99", kind="percent"),
        Column(key="stall_s", heading="stall", kind="seconds"),
        Column(key="done", heading="saves done meanwhile", kind="count"),
    )
    rows = tuple(_row(rounds, phase, settings) for phase in phases)
    return Table(title="Step times", columns=columns, rows=rows, note="Medians over the rounds, and their range.")


def _row(rounds: Rounds, phase: Phase, settings: dict[str, Any]) -> dict[str, Cell]:
    found = [times[phase] for times in rounds]
    mean_percent, p99_percent = slow_downs(rounds, phase)
    return {
        "phase": phase,
        "what": _WHAT[phase].format(every=settings["every"]),
        "mean_s": samples(statistics.fmean(times.steps_s) for times in found),
        "alone_mean_s": samples(statistics.fmean(times.alone_s) for times in found),
        "p99_s": samples(percentile(times.steps_s, 99) for times in found),
        "alone_p99_s": samples(percentile(times.alone_s, 99) for times in found),
        "mean_percent": samples(mean_percent),
        "p99_percent": samples(p99_percent),
        "stall_s": samples(stall_s for times in found for stall_s in times.stalls_s),
        "done": samples(times.done for times in found) if phase in ("writing", "draining") else None,
    }


def _figures(rounds: Rounds, phases: list[Phase]) -> list[Figure]:
    bounds: dict[Phase, float | None] = {"saving": None, "guarded": GUARDED_BOUND, "writing": None, "draining": DRAINING_BOUND}
    return [
        Figure(
            name=f"interference.{phase}",
            what=f"slow-down of the mean step, {phase}",
            values=tuple(slow_downs(rounds, phase)[0]),
            bound=bounds[phase],
            at_least=False,
            unit="%",
        )
        for phase in phases
    ]


def _slow_downs(rounds: Rounds, phases: list[Phase]) -> Bars:
    found = [slow_downs(rounds, phase) for phase in phases]
    series: dict[str, tuple[Cell, ...]] = {
        "mean": tuple(samples(mean) for mean, _ in found),
        "p99": tuple(samples(p99) for _, p99 in found),
    }
    return Bars(title="Slow-down of a step", kind="percent", categories=tuple(phases), series=series)


def _steps(rounds: Rounds, phases: list[Phase]) -> Lines:
    last = rounds[-1]
    steps_s = {str(phase): last[phase].steps_s for phase in phases} | {"alone": last[phases[0]].alone_s}
    return Lines(
        title="Each step of the last round",
        x_title="step",
        x_kind="count",
        y_title="step",
        y_kind="seconds",
        series={name: tuple((float(number), step_s) for number, step_s in enumerate(found)) for name, found in steps_s.items()},
    )


def _distribution(rounds: Rounds, phases: list[Phase]) -> Lines:
    all_steps = {str(phase): [step_s for times in rounds for step_s in times[phase].steps_s] for phase in phases}
    all_steps["alone"] = [step_s for times in rounds for phase in phases for step_s in times[phase].alone_s]
    return Lines(
        title="Steps of all rounds, by percentile",
        x_title="percentile",
        x_kind="count",
        y_title="step",
        y_kind="seconds",
        series={name: tuple((percent, percentile(steps_s, percent)) for percent in _PERCENTILES) for name, steps_s in all_steps.items()},
    )
