"""From measured hits to the report: tables per trace, and the figures that are promised against LRU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ckptstore_bench.cache.measure import Contest
from ckptstore_bench.cache.policies import LRU, OURS, POLICIES, Hits
from ckptstore_bench.report import Bars, Column, Figure, Report, Table, samples

KINDS: dict[str, Callable[[Hits], float]] = {"reads": lambda hits: hits.of_reads, "bytes": lambda hits: hits.of_bytes}


def build(contests: Sequence[Contest], *, rounds: int, settings: dict[str, Any], machine: dict[str, Any]) -> Report:
    return Report(
        command="cache",
        title="How often a file is found on the node",
        limit="What a policy can find is bounded by the trace: a file that is read for the first time is in no cache.",
        rounds=rounds,
        settings=settings,
        machine=machine,
        tables=tuple(_table(contests, kind) for kind in KINDS),
        figures=tuple(_figure(contest, kind) for contest in contests for kind in KINDS),
        plots=tuple(_plot(contests, trace) for trace in dict.fromkeys(contest.trace for contest in contests)),
        notes=("A round is another seed. The policy is the daemon's own code; its files are only counted here.",),
    )


def _table(contests: Sequence[Contest], kind: str) -> Table:
    columns = (
        Column(key="trace", heading="trace"),
        Column(key="size_percent", heading="cache, of all bytes", kind="percent"),
        *(Column(key=f"{name}_percent", heading=name, kind="percent") for name in POLICIES),
    )
    rows = tuple(
        {"trace": contest.trace, "size_percent": 100 * contest.share}
        | {f"{name}_percent": samples(100 * KINDS[kind](hits) for hits in contest.hits[name]) for name in POLICIES}
        for contest in contests
    )
    return Table(title=f"Of all {kind}, found on the node", columns=columns, rows=rows)


def _figure(contest: Contest, kind: str) -> Figure:
    pairs = zip(contest.hits[OURS], contest.hits[LRU], strict=True)
    return Figure(
        name=f"{contest.trace} {contest.share:.0%} {kind}",
        what=f"found {kind}, against LRU at the same size",
        values=tuple(KINDS[kind](ours) / KINDS[kind](lru) for ours, lru in pairs),
        bound=1.0,
    )


def _plot(contests: Sequence[Contest], trace: str) -> Bars:
    chosen = [contest for contest in contests if contest.trace == trace]
    return Bars(
        title=f"{trace}: of all reads, found on the node",
        kind="percent",
        categories=tuple(f"{contest.share:.0%}" for contest in chosen),
        series={name: tuple(samples(100 * hits.of_reads for hits in contest.hits[name]) for contest in chosen) for name in POLICIES},
    )
