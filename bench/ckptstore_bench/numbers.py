"""How is a number written for people? By what it is: `Kind` of `report`. One place, for the terminal, the page and the axes of plots."""

from __future__ import annotations

from ckptstore_bench.report import Cell, Kind, Samples

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def written(cell: Cell, kind: Kind) -> str:
    """`0.0672` seconds → `67.2 ms`; Samples as `median (low–high)`; nothing for None."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Samples):
        if len(cell.values) == 1:
            return one(cell.median, kind)
        return f"{one(cell.median, kind)} ({one(cell.low, kind)}–{one(cell.high, kind)})"
    return one(cell, kind)


def one(value: float, kind: Kind) -> str:
    match kind:
        case "seconds":
            return _seconds(value)
        case "bytes":
            return _bytes(value)
        case "bytes_per_s":
            return f"{_digits(value / 1e9)} GB/s" if abs(value) >= 1e8 else f"{_digits(value / 1e6)} MB/s"
        case "seconds_per_gb":
            return f"{_digits(value)} s/GB"
        case "percent":
            return f"{_digits(value)} %"
        case "ratio":
            return f"{_digits(value)}×"
        case "per_s":
            return f"{_digits(value)}/s"
        case _:
            return f"{value:,}" if isinstance(value, int) else _digits(value)


def _digits(value: float) -> str:
    """Three that mean something, without an exponent."""
    magnitude = abs(value)
    return (
        f"{value:,.0f}"
        if magnitude >= 100
        else f"{value:.1f}"
        if magnitude >= 10
        else f"{value:.2f}"
        if magnitude >= 0.1
        else f"{value:.3g}"
    )


def _seconds(value: float) -> str:
    magnitude = abs(value)
    if magnitude >= 300:
        return f"{_digits(value / 60)} min" if magnitude < 7200 else f"{_digits(value / 3600)} h"
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if magnitude >= factor or unit == "µs":
            return f"{_digits(value / factor)} {unit}"
    raise AssertionError(value)


def _bytes(value: float) -> str:
    for unit in _BINARY:
        if abs(value) < 1024 or unit == _BINARY[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{_digits(value)} {unit}"
        value /= 1024
    raise AssertionError(value)
