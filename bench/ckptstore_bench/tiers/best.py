"""Which setting should the configuration have? The one at which a checkpoint is written and read back soonest, if it is clearly better.

What a tier can be told differs by its kind: a posix tier how to write (direct or not, how many at once, how much at a time), and by the
first of these how to read; an S3 tier from which size of parts and from how many at once it finds its own way; memory, huge pages or not.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ckptstore.config import TierSettings
from ckptstore_bench.tiers.contender import Setting
from ckptstore_bench.tiers.sweep import Measured, Row, shown
from ckptstore_client.cli.config_template import round_size
from ckptstore_tiers.s3_options import read_s3_settings

#: The present setting stays unless another needs this much less time, and less time in every round: the rest changes from run to run.
CLEARLY = 0.05


@dataclass(frozen=True)
class Best:
    """A tier at its best: the rows that show it, and what the configuration should say (empty: what it says)."""

    setting: Setting
    write: Row
    read: Row
    device_write: Row
    device_read: Row
    changes: dict[str, Any]

    @property
    def words(self) -> str:
        return shown(self.setting)


def best_of(measured: Measured, settings: TierSettings | None) -> Best:
    """`settings` None: memory, whose setting is `best_huge_pages`'."""
    present = measured.place.present
    costs = {row.setting: _costs(measured, row.setting) for row in measured.of("write") if row.rates("store")}
    fastest = min(costs, key=lambda setting: statistics.median(costs[setting]))
    if present in costs and not clearly_less(costs[fastest], costs[present]):
        fastest = present
    found = measured.row("write", fastest)
    return Best(
        found.setting,
        found,
        _best_read(measured, found.setting),
        _fastest(measured.of("write"), "device"),
        _fastest(measured.of("read"), "device"),
        {} if settings is None or found.setting == present else _told(settings, found.setting),
    )


def clearly_less(ones: Sequence[float], others: Sequence[float]) -> bool:
    """Whether `ones`, round by round beside `others`, are lower each time, and by enough in the median."""
    every_round = all(one < other for one, other in zip(ones, others, strict=True))
    return every_round and statistics.median(ones) * (1 + CLEARLY) < statistics.median(others)


def _costs(measured: Measured, setting: Setting) -> list[float]:
    """Seconds a byte, to write and to read back, round by round."""
    write, read = measured.row("write", setting), _best_read(measured, setting)
    return [1 / written + 1 / was_read for written, was_read in zip(write.rates("store"), read.rates("store"), strict=True)]


def _best_read(measured: Measured, setting: Setting) -> Row:
    """How a tier of this setting is read: S3 with these parts; files and memory as the reader likes, past the cache or through it."""
    if measured.place.kind == "object":
        return measured.row("read", setting)
    return _fastest([row for row in measured.of("read") if row.setting.direct == setting.direct], "store")


def _fastest(rows: list[Row], side: Any) -> Row:
    return max((row for row in rows if row.rates(side)), key=lambda row: statistics.median(row.rates(side)))


def _told(settings: TierSettings, setting: Setting) -> dict[str, Any]:
    size = round_size(setting.block_bytes)
    if settings.kind == "object":
        _, options = read_s3_settings(settings)
        most = max(options.part_size_most, setting.block_bytes)
        parallel = {"parallel_start": setting.threads, "parallel": max(options.parallel, setting.threads)}
        return {"options": {"part_size": size, "part_size_most": round_size(most), **parallel}}
    direct = "never" if not setting.direct else settings.direct_io if settings.direct_io != "never" else "auto"
    return {"direct_io": direct, "write_threads": setting.threads, "write_size": size}


def best_huge_pages(first_touch: dict[bool, list[float]], present: bool) -> bool:
    """`first_touch`: seconds until a fresh segment is filled, with huge pages and without."""
    return not present if clearly_less(first_touch[not present], first_touch[present]) else present
