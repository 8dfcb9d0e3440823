"""What was found about DCP, as a table, figures and bars."""

from __future__ import annotations

from typing import Any

from ckptstore_bench.dcp.measuring import Results, Wanted
from ckptstore_bench.dcp.ways import AS_CALLED, BEST, FIO, STORE, WAYS
from ckptstore_bench.measure import figure
from ckptstore_bench.report import Bars, Column, Figure, Report, Table, samples

LIMIT_SAID = (
    "DCP's own file system writer and reader on the same device, in the same processes and rounds; "
    "`fs` as dcp.async_save is called, `fs-best` with its staging memory and plan kept. Beside the loads, fio reads as many bytes."
)
#: measure → bounds of our seconds to those of `fs` and of `fs-best`
BOUNDS: dict[str, tuple[float, float | None]] = {
    "stall": (1 / 3, 1.0),
    "durable": (1 / 2, 0.7),
    "load, same ranks": (1 / 2, None),
    "load, other ranks": (1 / 2, None),
}
PLAN_MS = 500.0
#: of fio's speed, when as many bytes are loaded: what is left is no longer the reader's to gain
DISK_SHARE = 0.85


def build(results: Results, wanted: Wanted, *, tiers: list[dict[str, Any]], machine: dict[str, Any]) -> Report:
    measures = [name for name in BOUNDS if name in results.seconds]
    table = Table(
        title=f"{wanted.ranks} ranks, {wanted.tensors} tensors",
        columns=(Column(key="way", heading="way"), *(Column(key=name, heading=name, kind="seconds") for name in measures)),
        rows=tuple({"way": way} | {name: samples(results.seconds[name][way]) for name in measures} for way in (*WAYS, FIO)),
    )
    bars = {name: tuple(samples(results.seconds[name][way]) for way in WAYS) for name in measures}
    return Report(
        command="bench dcp",
        title="PyTorch Distributed Checkpoint",
        limit=LIMIT_SAID,
        rounds=wanted.rounds,
        settings={
            "size_bytes": wanted.size_bytes,
            "ranks": wanted.ranks,
            "others": wanted.others,
            "tensors": wanted.tensors,
            "planned": wanted.planned,
            "tiers": tiers,
        },
        machine=machine,
        tables=(table,),
        figures=tuple(figures(results, wanted)),
        plots=(Bars(title="Seconds", kind="seconds", categories=WAYS, series=bars),),
    )


def figures(results: Results, wanted: Wanted) -> list[Figure]:
    """Ratios of each round: our seconds to DCP's."""
    found: list[Figure] = []
    for name, bounds in BOUNDS.items():
        taken = results.seconds.get(name)
        if taken is None:
            continue
        for way, bound in zip((AS_CALLED, BEST), bounds, strict=True):
            if bound is None:
                continue
            ratios = [ours / theirs for ours, theirs in zip(taken[STORE], taken[way], strict=True)]
            key = f"dcp.{name.replace(', ', '.').replace(' ', '_')}.{way}"
            found += figure(key, f"{name}: seconds, to those of {way}", ratios, bound, at_least=False)
        if taken[FIO]:
            speeds = [disk / ours for ours, disk in zip(taken[STORE], taken[FIO], strict=True)]
            key = f"dcp.{name.replace(', ', '.').replace(' ', '_')}.{FIO}"
            found += figure(key, f"{name}: speed, of that of fio", speeds, DISK_SHARE)
    what = "collectives of a save by `store.save` with shards"
    found += figure("dcp.collectives", what, results.collectives, 0.0, at_least=False, unit="")
    if results.plan_s:
        what = f"plan and header of {wanted.planned:,} tensors on one of 64 ranks, second save"
        found += figure("dcp.plan", what, [seconds * 1e3 for seconds in results.plan_s], PLAN_MS, at_least=False, unit="ms")
    return found
