"""How are large numbers read, and speeds and times written in a plan's sentences? `1T`, `66.7 GB/s`, `4 min 10 s`.

Decimal units, as vendors and job descriptions use them; the configuration's `parse_size` and `parse_duration` read bytes and times.
"""

from __future__ import annotations

import math
import re

from ckptstore.errors import InvalidInput

_COUNT_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_WORD = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*$")
_SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def parse_count(text: str) -> int:
    """`1T`, `405B`, `8.03B` → a number (of parameters)."""
    match = _WORD.match(text)
    value = float(match[1]) * _COUNT_UNITS.get(match[2].upper(), 0.0) if match else 0.0
    if not 1 <= value < math.inf:
        raise InvalidInput(f"{text!r} is none of the likes of 1T, 405B or 8030000000", operation="read number")
    return round(value)


def scaled(value: float, unit: str) -> str:
    """`66.7 GB/s` of 66.7e9 and "B/s": three digits."""
    for factor, prefix in _SCALES:
        if value >= factor * 0.9995:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def duration(seconds: float) -> str:
    """`1.2 ms`, `29.8 s`, `4 min 58 s`, `2 h 13 min`: two units at most, since more would not be read."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    if not math.isfinite(seconds):
        return "for ever"
    whole = round(seconds)
    for unit, unit_s, below, below_s in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= unit_s:
            rest = whole % unit_s // below_s
            return f"{whole // unit_s} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"
