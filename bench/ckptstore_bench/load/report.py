"""From measured loads to the report: speed beside the limits, cost, ratios to the store round by round, plots, and who could not run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckptstore_bench.load.measure import Loads
from ckptstore_bench.load.source import Source
from ckptstore_bench.report import Bars, Cell, Column, Report, Table, samples

STORES = ("ckptstore into", "ckptstore")
COPY, FIO = "memory copy", "fio"


def build(
    loads: Sequence[Loads], *, source: Source, size_bytes: int, rounds: int, settings: dict[str, Any], machine: dict[str, Any]
) -> Report:
    ran = [one for one in loads if one.load_s]
    limit = next((one for one in ran if one.name == (COPY if source.tier is None else FIO)), None)
    tables = [_speed(ran, limit, size_bytes), _cost(ran, size_bytes), _ratios(ran)]
    out = [one for one in loads if one.why_not is not None]
    if out:
        columns = (Column(key="contender", heading="could not run"), Column(key="why", heading="why"))
        rows = tuple({"contender": one.name, "why": one.why_not} for one in out)
        tables.append(Table(title="Who could not run", columns=columns, rows=rows))
    return Report(
        command="bench load",
        title=f"Loading from {source.title}",
        limit=_limit(limit, source.name, size_bytes),
        rounds=rounds,
        settings=settings,
        machine=machine,
        tables=tuple(tables),
        plots=_plots(ran, size_bytes),
    )


def _speed(ran: list[Loads], limit: Loads | None, size_bytes: int) -> Table:
    columns = [
        Column(key="contender", heading="contender"),
        Column(key="load_s", heading="time", kind="seconds"),
        Column(key="bytes_per_s", heading="speed", kind="bytes_per_s"),
        Column(key="limit_ratio", heading="of the limit", kind="ratio"),
    ]
    rows: list[dict[str, Cell]] = []
    for one in ran:
        limits = [] if limit is None else [a / b for a, b in zip(limit.load_s, one.load_s, strict=False)]
        speeds = samples(size_bytes / load_s for load_s in one.load_s)
        rows.append({"contender": one.name, "load_s": samples(one.load_s), "bytes_per_s": speeds, "limit_ratio": samples(limits)})
    return Table(title="Time until every byte is in memory: median (range) over the rounds", columns=tuple(columns), rows=tuple(rows))


def _cost(ran: list[Loads], size_bytes: int) -> Table:
    size_gb = size_bytes / 1e9
    columns = (
        Column(key="contender", heading="contender"),
        Column(key="cpu_s_per_gb", heading="CPU, client", kind="seconds_per_gb"),
        Column(key="daemon_cpu_s_per_gb", heading="CPU, daemon", kind="seconds_per_gb"),
        Column(key="peak_bytes", heading="peak memory", kind="bytes"),
    )
    rows: list[dict[str, Cell]] = [
        {
            "contender": one.name,
            "cpu_s_per_gb": samples(cpu_s / size_gb for cpu_s in one.cpu_s),
            "daemon_cpu_s_per_gb": samples(cpu_s / size_gb for cpu_s in one.daemon_cpu_s),
            "peak_bytes": one.peak_bytes,
        }
        for one in ran
        if one.role != "limit"
    ]
    note = "Peak memory: of the client, beyond what it held before; where tensors are new, they are in it."
    return Table(title="What a load costs", columns=columns, rows=tuple(rows), note=note)


def _ratios(ran: list[Loads]) -> Table:
    stores = [one for one in ran if one.name in STORES]
    columns = [Column(key="contender", heading="contender")]
    columns += [Column(key=f"{store.name.replace(' ', '_')}_ratio", heading=f"over {store.name}", kind="ratio") for store in stores]
    rows: list[dict[str, Cell]] = []
    for one in ran:
        if one.role != "store":
            ratios = {
                f"{store.name.replace(' ', '_')}_ratio": samples(a / b for a, b in zip(one.load_s, store.load_s, strict=False))
                for store in stores
            }
            rows.append({"contender": one.name, **ratios})
    title = "Time of each over the store's, in the same round: median (range); above 1×, the store is faster"
    return Table(title=title, columns=tuple(columns), rows=tuple(rows))


def _plots(ran: list[Loads], size_bytes: int) -> tuple[Bars, ...]:
    names = tuple(one.name for one in ran)
    speed = tuple(samples(size_bytes / load_s for load_s in one.load_s) for one in ran)
    costly = [one for one in ran if one.role != "limit"]
    cpu = {
        "client": tuple(samples(cpu_s / (size_bytes / 1e9) for cpu_s in one.cpu_s) for one in costly),
        "daemon": tuple(samples(cpu_s / (size_bytes / 1e9) for cpu_s in one.daemon_cpu_s) for one in costly),
    }
    return (
        Bars(title="Speed of a load", kind="bytes_per_s", categories=names, series={"speed": speed}),
        Bars(title="CPU time per GB loaded", kind="seconds_per_gb", categories=tuple(one.name for one in costly), series=cpu),
    )


def _limit(limit: Loads | None, source: str, size_bytes: int) -> str:
    if limit is None or (measured := samples(limit.load_s)) is None:
        return f"nothing that was measured here: `ckptstore bench tiers --only {source}` measures what bounds it"
    return f"{limit.what}: {size_bytes / measured.median / 1e9:.2f} GB/s"
