"""From measured saves to the report: steady state, first save, ratios to the store round by round, plots, and who could not run and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckptstore_bench.numbers import written
from ckptstore_bench.report import Bars, Cell, Column, Plot, Report, Table, samples
from ckptstore_bench.save.measure import Saves

STORE, COPY, FIO = "ckptstore", "memory copy", "fio"
SNAPSHOT = "snapshot"


def build(
    saves: Sequence[Saves], *, size_bytes: int, rounds: int, places: Sequence[str], settings: dict[str, Any], machine: dict[str, Any]
) -> Report:
    """`places` are where a save arrives: snapshot, then the tiers in order."""
    ran = [one for one in saves if one.steady]
    tables = [_steady(ran, size_bytes, places), _cost(ran, size_bytes), _first(ran, places), _ratios(ran, places), _written(ran)]
    out = [one for one in saves if one.why_not is not None]
    if out:
        tables.append(_could_not_run(out))
    return Report(
        command="bench save",
        title="Saving: what it costs training, and when it is safe",
        limit=_limit(ran, size_bytes, places),
        rounds=rounds,
        settings=settings,
        machine=machine,
        tables=tuple(table for table in tables if table.rows),
        plots=_plots(ran, size_bytes, places),
        notes=_notes(ran),
    )


def _steady(ran: list[Saves], size_bytes: int, places: Sequence[str]) -> Table:
    columns = [
        Column(key="contender", heading="contender"),
        Column(key="stall_s", heading="stall", kind="seconds"),
        Column(key="stall_bytes_per_s", heading="size / stall", kind="bytes_per_s"),
        *(Column(key=f"{place}_s", heading=f"in {place}", kind="seconds") for place in places),
    ]
    rows: list[dict[str, Cell]] = []
    for one in ran:
        stalls = [saved.stall_s for saved in one.steady if saved.stall_s is not None]
        row: dict[str, Cell] = {
            "contender": one.name,
            "stall_s": samples(stalls),
            "stall_bytes_per_s": samples(size_bytes / stall_s for stall_s in stalls),
        }
        rows.append(row | {f"{place}_s": _to(one, place) for place in places})
    note = "Times are from the call; a peer's counts when its files are fsynced."
    return Table(title="Steady state: median (range) over the rounds", columns=tuple(columns), rows=tuple(rows), note=note)


def _cost(ran: list[Saves], size_bytes: int) -> Table:
    size_gb = size_bytes / 1e9
    columns = (
        Column(key="contender", heading="contender"),
        Column(key="durable_bytes_per_s", heading="size / safe", kind="bytes_per_s"),
        Column(key="cpu_s_per_gb", heading="CPU, client", kind="seconds_per_gb"),
        Column(key="daemon_cpu_s_per_gb", heading="CPU, daemon", kind="seconds_per_gb"),
        Column(key="peak_bytes", heading="peak memory", kind="bytes"),
    )
    rows: list[dict[str, Cell]] = []
    for one in ran:
        safe = [min(times) for saved in one.steady if (times := _durable(saved.reached_s))]
        row: dict[str, Cell] = {
            "contender": one.name,
            "durable_bytes_per_s": samples(size_bytes / safe_s for safe_s in safe),
            "cpu_s_per_gb": samples(cpu_s / size_gb for cpu_s in one.cpu_s) if one.name != FIO else None,
            "daemon_cpu_s_per_gb": samples(cpu_s / size_gb for cpu_s in one.daemon_cpu_s),
            "peak_bytes": one.peak_bytes,
        }
        rows.append(row)
    note = "CPU until it is in the last tier. Peak memory: beyond the state, with the daemon or writer process that a contender needs."
    return Table(title="What a save costs", columns=columns, rows=tuple(rows), note=note)


def _first(ran: list[Saves], places: Sequence[str]) -> Table:
    columns = [
        Column(key="contender", heading="contender"),
        Column(key="stall_s", heading="stall", kind="seconds"),
        Column(key="stall_ratio", heading="of its steady stall", kind="ratio"),
        *(Column(key=f"{place}_s", heading=f"in {place}", kind="seconds") for place in places),
    ]
    rows: list[dict[str, Cell]] = []
    for one in ran:
        if one.first is None or one.first.stall_s is None or one.name == COPY:
            continue
        steady = samples(saved.stall_s for saved in one.steady if saved.stall_s is not None)
        ratio = one.first.stall_s / steady.median if steady is not None and steady.median else None
        row: dict[str, Cell] = {"contender": one.name, "stall_s": one.first.stall_s, "stall_ratio": ratio}
        rows.append(row | {f"{place}_s": one.first.reached_s.get(place) for place in places})
    return Table(title="First save of a process", columns=tuple(columns), rows=tuple(rows))


def _ratios(ran: list[Saves], places: Sequence[str]) -> Table:
    """Each contender's time over the store's in the same round: above 1, the store is faster."""
    store = next(one for one in ran if one.name == STORE)
    columns = [Column(key="contender", heading="contender"), Column(key="stall_ratio", heading="stall", kind="ratio")]
    columns += [Column(key=f"{place}_ratio", heading=f"in {place}", kind="ratio") for place in places]
    rows: list[dict[str, Cell]] = []
    for one in ran:
        if one is store:
            continue
        pairs = list(zip(one.steady, store.steady, strict=False))
        row: dict[str, Cell] = {"contender": one.name}
        row["stall_ratio"] = samples(a.stall_s / b.stall_s for a, b in pairs if a.stall_s is not None and b.stall_s)
        for place in places:
            row[f"{place}_ratio"] = samples(
                a.reached_s[place] / b.reached_s[place] for a, b in pairs if place in a.reached_s and place in b.reached_s
            )
        rows.append(row)
    title = f"Time of each over {STORE}'s, in the same round: median (range); above 1×, {STORE} is faster"
    return Table(title=title, columns=tuple(columns), rows=tuple(rows))


def _written(ran: list[Saves]) -> Table:
    """Incremental saves: bytes on the disk beside the bytes that had changed."""
    columns = (
        Column(key="contender", heading="contender"),
        Column(key="written_bytes", heading="written", kind="bytes"),
        Column(key="changed_bytes", heading="changed", kind="bytes"),
        Column(key="ratio", heading="written / changed", kind="ratio"),
    )
    rows: list[dict[str, Cell]] = []
    for one in ran:
        pairs = [
            (saved.written_bytes, changed) for saved, changed in zip(one.steady, one.changed_bytes, strict=False) if saved.written_bytes
        ]
        if pairs:
            row: dict[str, Cell] = {"contender": one.name, "written_bytes": samples(size for size, _ in pairs)}
            row["changed_bytes"] = samples(changed for _, changed in pairs)
            row["ratio"] = samples(size / changed for size, changed in pairs if changed)
            rows.append(row)
    return Table(title="What an incremental save writes", columns=columns, rows=tuple(rows))


def _could_not_run(out: list[Saves]) -> Table:
    columns = (Column(key="contender", heading="could not run"), Column(key="why", heading="why"))
    return Table(title="Who could not run", columns=columns, rows=tuple({"contender": one.name, "why": one.why_not} for one in out))


def _plots(ran: list[Saves], size_bytes: int, places: Sequence[str]) -> tuple[Plot, ...]:
    stalling = [one for one in ran if any(saved.stall_s is not None for saved in one.steady)]
    names = tuple(one.name for one in stalling)
    stalls = {
        "steady state": tuple(samples(saved.stall_s for saved in one.steady if saved.stall_s is not None) for one in stalling),
        "first save": tuple(one.first.stall_s if one.first is not None and one.name != COPY else None for one in stalling),
    }
    arriving = [one for one in ran if any(saved.reached_s for saved in one.steady)]
    arrivals = {place: tuple(_to(one, place) for one in arriving) for place in places}
    costly = [one for one in ran if one.role != "limit"]
    size_gb = size_bytes / 1e9
    cpu = {
        "client": tuple(samples(cpu_s / size_gb for cpu_s in one.cpu_s) for one in costly),
        "daemon": tuple(samples(cpu_s / size_gb for cpu_s in one.daemon_cpu_s) for one in costly),
    }
    memory = {"peak memory": tuple(one.peak_bytes for one in costly)}
    costly_names = tuple(one.name for one in costly)
    return (
        Bars(title="Stall of training", kind="seconds", categories=names, series=stalls),
        Bars(
            title="From the call until all of it is there", kind="seconds", categories=tuple(one.name for one in arriving), series=arrivals
        ),
        Bars(title="CPU time per GB saved", kind="seconds_per_gb", categories=costly_names, series=cpu),
        Bars(title="Peak memory beyond the state", kind="bytes", categories=costly_names, series=memory),
    )


def _limit(ran: list[Saves], size_bytes: int, places: Sequence[str]) -> str:
    """What bounds a stall and a durable save on this machine, as it was in this run."""
    told = []
    copy = next((one for one in ran if one.name == COPY), None)
    if copy is not None and (stall := samples(saved.stall_s for saved in copy.steady if saved.stall_s)) is not None:
        told.append(f"a stall that copies: this machine's warm memory copy, {size_bytes / stall.median / 1e9:.2f} GB/s")
    fio = next((one for one in ran if one.name == FIO), None)
    for place in places:
        if fio is not None and (reached := _to(fio, place)) is not None:
            told.append(f"{place}: fio with O_DIRECT and fsync on the same device, {size_bytes / reached.median / 1e9:.2f} GB/s")
    return "; ".join(told) or "nothing: neither the memory copy nor fio could run"


def _notes(ran: list[Saves]) -> tuple[str, ...]:
    """The parts of the store's own saves."""
    told = []
    for one in ran:
        names = dict.fromkeys(name for saved in one.steady for name in saved.parts_s)
        parts = {name: samples(saved.parts_s[name] for saved in one.steady if name in saved.parts_s) for name in names}
        if parts:
            told.append(f"{one.name}: " + ", ".join(f"{name} {written(found, 'seconds')}" for name, found in parts.items()))
    return tuple(told)


def _to(one: Saves, place: str) -> Any:
    return samples(saved.reached_s[place] for saved in one.steady if place in saved.reached_s)


def _durable(reached_s: dict[str, float]) -> list[float]:
    return [seconds for place, seconds in reached_s.items() if place != SNAPSHOT]
