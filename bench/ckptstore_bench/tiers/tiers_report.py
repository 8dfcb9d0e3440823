"""What was measured of the tiers, as a report: all settings in tables and heat maps, and what is best beside what the device can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptstore_bench import machine
from ckptstore_bench.report import Bars, Cell, Column, Figure, Heatmap, Lines, Plot, Report, Table, samples
from ckptstore_bench.tiers.best import Best
from ckptstore_bench.tiers.contender import SMALL_BYTES, Setting
from ckptstore_bench.tiers.sweep import Act, Measured, Row, Side, shown

LIMIT = (
    "each tier's own device, by the same acts without ckptstore in the same run: for folders pwrite, pread and fsync, for S3 plain "
    "botocore, for memory plain copies. Ratios are formed round by round, and a figure compares both at their best setting."
)
#: What `put` should reach of a device's own speed, and `read`.
WRITE_BOUND, READ_BOUND = 0.8, 0.85
_PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
_SIDES: dict[Side, str] = {"store": "ckptstore", "device": "device"}


@dataclass(frozen=True)
class TierResult:
    """One tier: all that was measured, and what is best. `first_touch`: only of memory, seconds by huge pages or not."""

    measured: Measured
    best: Best
    #: what the configuration says now, and what it should say, in words
    now: str
    advice: str
    first_touch: dict[bool, list[float]] | None = None
    size_bytes: int = 0


def tiers_report(results: Sequence[TierResult], *, rounds: int, settings: dict[str, Any], notes: Sequence[str], folder: Path) -> Report:
    first_touch = [_first_touch(result) for result in results if result.first_touch]
    return Report(
        command="bench tiers",
        title="Tiers, beside their devices",
        limit=LIMIT,
        rounds=rounds,
        settings=settings,
        machine=machine.describe(folder),
        tables=(_best(results), *first_touch, _small(results), *(_sequential(result.measured) for result in results)),
        figures=tuple(figure for result in results for figure in _figures(result)),
        plots=(_beside(results), *(plot for result in results for plot in _plots(result.measured))),
        notes=(*notes, *(f"{result.measured.place.name}: {note}" for result in results for note in result.measured.place.notes)),
    )


def _best(results: Sequence[TierResult]) -> Table:
    columns = (
        Column(key="tier", heading="tier"),
        Column(key="kind", heading="kind"),
        Column(key="shared", heading="shared"),
        Column(key="setting", heading="best setting"),
        Column(key="write_bytes_per_s", heading="write", kind="bytes_per_s"),
        Column(key="device_write_bytes_per_s", heading="device", kind="bytes_per_s"),
        Column(key="read_bytes_per_s", heading="read", kind="bytes_per_s"),
        Column(key="device_read_bytes_per_s", heading="device", kind="bytes_per_s"),
        Column(key="advice", heading="configuration"),
    )
    rows: tuple[dict[str, Cell], ...] = tuple(
        {
            "tier": result.measured.place.name,
            "kind": result.measured.place.kind,
            "shared": "yes" if result.measured.place.shared else "no",
            "setting": result.best.words,
            "write_bytes_per_s": samples(result.best.write.rates("store")),
            "device_write_bytes_per_s": samples(result.best.device_write.rates("device")),
            "read_bytes_per_s": samples(result.best.read.rates("store")),
            "device_read_bytes_per_s": samples(result.best.device_read.rates("device")),
            "advice": result.advice,
        }
        for result in results
    )
    note = "What one node gets; `bench plan --measured` reads this table."
    return Table(title="Each tier at its best", columns=columns, rows=rows, note=note)


def _small(results: Sequence[TierResult]) -> Table:
    columns = (
        Column(key="tier", heading="tier"),
        Column(key="act", heading="of 4 KiB"),
        Column(key="threads", heading="threads", kind="count"),
        Column(key="per_s", heading="ckptstore", kind="per_s"),
        Column(key="device_per_s", heading="device", kind="per_s"),
        Column(key="ratio", heading="ratio", kind="ratio"),
        *_latency_columns(),
    )
    rows = tuple(
        _cells(result.measured, row)
        | {"per_s": samples(_per_s(row, "store")), "device_per_s": samples(_per_s(row, "device")), "ratio": samples(_ratios_per_s(row))}
        for result in results
        for act in ("random read", "small write", "fsync")
        for row in result.measured.of(act)
    )
    note = "A small write is durable: file, fsync, rename, fsync of the folder; to S3 a PutObject. Fsync: of 4 KiB overwritten in place."
    return Table(title="Small and random", columns=columns, rows=rows, note=note)


def _sequential(measured: Measured) -> Table:
    columns = (
        Column(key="act", heading="act"),
        Column(key="block_bytes", heading="block", kind="bytes"),
        Column(key="threads", heading="threads", kind="count"),
        Column(key="way", heading=""),
        Column(key="bytes_per_s", heading="ckptstore", kind="bytes_per_s"),
        Column(key="device_bytes_per_s", heading="device", kind="bytes_per_s"),
        Column(key="ratio", heading="ratio", kind="ratio"),
        *_latency_columns(),
    )
    acts: tuple[Act, ...] = ("write", "read")
    rows = tuple(
        _cells(measured, row)
        | {
            "bytes_per_s": samples(row.rates("store")),
            "device_bytes_per_s": samples(row.rates("device")),
            "ratio": samples(row.ratios),
        }
        for act in acts
        for row in measured.of(act)
    )
    note = "Latencies are of single calls; a put of ckptstore is one call. An empty cell: ckptstore cannot be told to do so."
    return Table(title=f"{measured.place.name}: all of it, by setting", columns=columns, rows=rows, note=note)


def _latency_columns() -> tuple[Column, ...]:
    return (
        Column(key="p50_s", heading="p50", kind="seconds"),
        Column(key="p99_s", heading="p99", kind="seconds"),
        Column(key="device_p50_s", heading="device p50", kind="seconds"),
        Column(key="device_p99_s", heading="p99", kind="seconds"),
    )


def _cells(measured: Measured, row: Row) -> dict[str, Cell]:
    store, device = row.latencies_s("store"), row.latencies_s("device")
    way = {None: "", True: "direct", False: "buffered"}[row.setting.direct]
    return {
        "tier": measured.place.name,
        "act": row.act,
        "block_bytes": row.setting.block_bytes,
        "threads": row.setting.threads,
        "way": way,
        "p50_s": percentile(store, 50),
        "p99_s": percentile(store, 99),
        "device_p50_s": percentile(device, 50),
        "device_p99_s": percentile(device, 99),
    }


def _per_s(row: Row, side: Side) -> list[float]:
    """Acts a second, by round."""
    return [len(timing.latencies_s) / timing.seconds for timing in row.timings.get(side, ())]


def _ratios_per_s(row: Row) -> list[float]:
    """Our acts a second to the device's, round by round; none where only one of the two did it."""
    ours, device = _per_s(row, "store"), _per_s(row, "device")
    return [mine / its for mine, its in zip(ours, device, strict=True)] if ours and device else []


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """The nearest rank of ascending values; None of none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else None


def _first_touch(result: TierResult) -> Table:
    columns = (
        Column(key="pages", heading="pages"),
        Column(key="seconds", heading="a first save's copy", kind="seconds"),
        Column(key="bytes_per_s", heading="", kind="bytes_per_s"),
    )
    touched = result.first_touch or {}
    rows: tuple[dict[str, Cell], ...] = tuple(
        {
            "pages": "huge" if huge else "of 4 KiB",
            "seconds": samples(seconds),
            "bytes_per_s": samples(result.size_bytes / second for second in seconds),
        }
        for huge, seconds in touched.items()
    )
    return Table(title="Memory: a segment that does not exist yet", columns=columns, rows=rows, note=f"Configured: {result.now}")


def _figures(result: TierResult) -> list[Figure]:
    name, best = result.measured.place.name, result.best
    bound = result.measured.place.kind != "object"  # there the server is the limit, and what a put verifies differs
    put = "copy into a segment" if result.measured.place.kind == "memory" else "put"
    return [
        _figure(f"{name}.write", f"{put} / its device's best write", best.write, best.device_write, WRITE_BOUND if bound else None),
        _figure(f"{name}.read", "verified read / its device's best read", best.read, best.device_read, READ_BOUND if bound else None),
    ]


def _figure(name: str, what: str, ours: Row, limit: Row, bound: float | None) -> Figure:
    ratios = [mine / theirs for mine, theirs in zip(ours.rates("store"), limit.rates("device"), strict=True)]
    return Figure(name=name, what=what, values=tuple(ratios), bound=bound)


def _beside(results: Sequence[TierResult]) -> Bars:
    return Bars(
        title="Each tier at its best, beside its device at its best",
        kind="bytes_per_s",
        categories=tuple(f"{result.measured.place.name} {act}" for result in results for act in ("write", "read")),
        series={
            _SIDES["store"]: tuple(samples(row.rates("store")) for result in results for row in (result.best.write, result.best.read)),
            _SIDES["device"]: tuple(
                samples(row.rates("device")) for result in results for row in (result.best.device_write, result.best.device_read)
            ),
        },
    )


def _plots(measured: Measured) -> list[Plot]:
    shown_maps: tuple[tuple[Act, Side], ...] = (("write", "store"), ("write", "device"), ("read", "store"))
    maps: list[Plot] = [
        found
        for act, side in shown_maps
        for direct in (None, True, False)
        if (found := _heatmap(measured, act, side, direct)) is not None
    ]
    return [*maps, _latencies(measured)] if any(row.latencies_s("store") for row in measured.rows.values()) else maps


def _heatmap(measured: Measured, act: Act, side: Side, direct: bool | None) -> Heatmap | None:
    rows = [row for row in measured.of(act) if row.setting.direct == direct and row.rates(side)]
    blocks = sorted({row.setting.block_bytes for row in rows})
    threads = sorted({row.setting.threads for row in rows})
    if len(rows) < 2:
        return None
    rates = {row.setting: samples(row.rates(side)) for row in rows}
    values = tuple(
        tuple(found.median if (found := rates.get(Setting(block, count, direct))) else None for block in blocks) for count in threads
    )
    way = {None: "", True: ", O_DIRECT", False: ", through the page cache"}[direct]
    return Heatmap(
        title=f"{measured.place.name}: {act}{way} ({_SIDES[side]})",
        kind="bytes_per_s",
        x_title="block",
        columns=tuple(shown(Setting(block, 1)).partition(" ×")[0] for block in blocks),
        y_title="threads",
        rows=tuple(str(count) for count in threads),
        values=values,
    )


def _latencies(measured: Measured) -> Lines:
    series = {}
    for row in measured.of("random read") + measured.of("small write"):
        for side, label in _SIDES.items():
            if found := row.latencies_s(side):
                points = tuple((percent, percentile(found, percent) or 0.0) for percent in _PERCENTILES)
                series[f"{row.act}, {row.setting.threads} threads, {label}"] = points
    return Lines(
        title=f"{measured.place.name}: latency of {SMALL_BYTES // 1024} KiB",
        x_title="percentile",
        x_kind="count",
        y_title="latency",
        y_kind="seconds",
        series=series,
        log_y=True,
    )
