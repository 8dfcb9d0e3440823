"""How is a number written for people? By what it is: `Kind` of `report`. One place, for the terminal, the page and the axes of plots."""

from __future__ import annotations

from ckptstore_bench.report import Cell, Kind, Samples

#: kind → units, largest first: (what one of it is in base units, its name)
_UNITS: dict[Kind, tuple[tuple[float, str], ...]] = {
    "seconds": ((3600.0, " h"), (60.0, " min"), (1.0, " s"), (1e-3, " ms"), (1e-6, " µs")),
    "bytes": ((2.0**50, " PiB"), (2.0**40, " TiB"), (2.0**30, " GiB"), (2.0**20, " MiB"), (2.0**10, " KiB"), (1.0, " B")),
    "bytes_per_s": ((1e9, " GB/s"), (1e6, " MB/s")),
    "seconds_per_gb": ((1.0, " s/GB"),),
    "percent": ((1.0, " %"),),
    "ratio": ((1.0, "×"),),
    "per_s": ((1.0, "/s"),),
}
#: A unit is used from this many of it on: 119 s and 0.1 GB/s are read more easily than 1.98 min and 100 MB/s.
_FROM = {" h": 2.0, " min": 2.0, " GB/s": 0.1}


def written(cell: Cell, kind: Kind) -> str:
    """`0.0672` seconds → `67.2 ms`; Samples as `median (low–high)` in one unit; nothing for None."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Samples):
        if len(cell.values) == 1:
            return one(cell.median, kind)
        factor, _ = _unit(cell.median, kind)
        return f"{one(cell.median, kind)} ({_digits(cell.low / factor)}–{_digits(cell.high / factor)})"
    return one(cell, kind)


def one(value: float, kind: Kind) -> str:
    if kind in ("count", "text") and isinstance(value, int):
        return f"{value:,}"
    factor, name = _unit(value, kind)
    return f"{_digits(value / factor)}{name}"


def _unit(value: float, kind: Kind) -> tuple[float, str]:
    units = _UNITS.get(kind, ((1.0, ""),))
    return next((unit for unit in units if abs(value) >= unit[0] * _FROM.get(unit[1], 1.0)), units[-1])


def _digits(value: float) -> str:
    """Three that mean something, without an exponent."""
    magnitude = abs(value)
    if magnitude >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if magnitude >= 10 else f"{value:.2f}" if magnitude >= 0.1 else f"{value:.3f}"
