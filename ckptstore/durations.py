"""How is a span of time written? `5m`, `1h30m`, `90s`, `7d`, or a number of seconds."""

from __future__ import annotations

import re

_DURATION = re.compile(
    r"^\s*(?:([0-9.]+)\s*d)?\s*(?:([0-9.]+)\s*h)?\s*(?:([0-9.]+)\s*m(?:in)?)?\s*(?:([0-9.]+)\s*s?)?\s*$", re.IGNORECASE
)
_UNITS_S = {"d": 86400, "h": 3600, "m": 60}


def parse_duration(value: object) -> float:
    """`"5m"`, `"1h30m"`, `"90s"`, `"7d"` or a number of seconds → seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"a duration is a number of seconds or a text such as '5m', not {value!r}")
    if not isinstance(value, str):
        return float(value)
    match = _DURATION.match(value)
    if match is None or not any(match.groups()):
        raise ValueError(f"{value!r} is no duration; write a number of seconds, or for example '5m', '90s' or '1h30m'")
    days, hours, minutes, seconds = (float(part) if part else 0.0 for part in match.groups())
    return 86400 * days + 3600 * hours + 60 * minutes + seconds


def duration_text(seconds: float) -> str:
    """As `parse_duration` reads it, in whole units as far as they go: 5400 → `1h30m`."""
    text, rest = "", seconds
    for unit, length_s in _UNITS_S.items():
        count, rest = divmod(rest, length_s)
        text += f"{int(count)}{unit}" if count else ""
    return text + (f"{rest:.10g}s" if rest or not text else "")
