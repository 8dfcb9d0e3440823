"""One tier, measured: every act at every setting, the tier and its device in turns, for so many rounds.

The two take turns within each setting, and who begins changes from round to round, so that what drifts (a neighbour, the device's own
caches) meets both. Ratios are formed round by round.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ckptstore_bench.running import Steps
from ckptstore_bench.tiers.contender import SMALL_BYTES, Contender, Setting, Timing

Act = Literal["write", "read", "random read", "small write", "fsync", "first touch"]
Side = Literal["store", "device"]
SEED = 20_240_601


@dataclass
class Row:
    """One act at one setting; one Timing a round for each side that can do it."""

    act: Act
    setting: Setting
    timings: dict[Side, list[Timing]] = field(default_factory=dict)

    def add(self, side: Side, timing: Timing) -> None:
        self.timings.setdefault(side, []).append(timing)

    def rates(self, side: Side) -> list[float]:
        """Bytes per second, one a round."""
        return [timing.bytes_per_s for timing in self.timings.get(side, ())]

    def latencies_s(self, side: Side) -> list[float]:
        """Of all rounds, sorted."""
        return sorted(latency for timing in self.timings.get(side, ()) for latency in timing.latencies_s)

    @property
    def ratios(self) -> list[float]:
        store, device = self.rates("store"), self.rates("device")
        return [ours / limit for ours, limit in zip(store, device, strict=True)] if store and device else []


@dataclass(frozen=True)
class Place:
    """A tier that is to be measured, beside its device."""

    name: str
    kind: Literal["memory", "posix", "object"]
    shared: bool
    store: Contender
    device: Contender
    grid: Sequence[Setting]
    #: the setting that the configuration has now; it is part of the grid
    present: Setting
    random_reads: int
    random_threads: Sequence[int]
    small_writes: int
    #: what to know when reading the figures
    notes: tuple[str, ...] = ()


@dataclass
class Measured:
    place: Place
    rows: dict[tuple[Act, Setting], Row] = field(default_factory=dict)

    def row(self, act: Act, setting: Setting) -> Row:
        return self.rows.setdefault((act, setting), Row(act, setting))

    def of(self, act: Act) -> list[Row]:
        return [row for (known, _), row in self.rows.items() if known == act]


def steps_of(place: Place, rounds: int) -> int:
    return rounds * (2 * len(place.grid) + len(place.random_threads) + 1)


def sweep(place: Place, data: memoryview, rounds: int, steps: Steps) -> Measured:
    measured = Measured(place)
    try:
        steps.say(f"{place.name}: preparing")
        for contender in (place.device, place.store):
            contender.prepare(data)
        for number in range(rounds):
            _round(measured, data, number, steps)
    finally:
        for contender in (place.device, place.store):
            contender.close()
    return measured


def _round(measured: Measured, data: memoryview, number: int, steps: Steps) -> None:
    place = measured.place
    sides: list[tuple[Side, Contender]] = [("device", place.device), ("store", place.store)]
    if number % 2:
        sides.reverse()
    offsets = random_offsets(len(data), place.random_reads, number)
    for setting in place.grid:
        steps.next(f"{place.name}: write {shown(setting)}")
        for side, contender in sides:
            if contender.can(setting):
                measured.row("write", setting).add(side, contender.write(data, setting))
        steps.next(f"{place.name}: read {shown(setting)}")
        for side, contender in sides:
            measured.row("read", setting).add(side, contender.read(setting))
    for threads in place.random_threads:
        setting = Setting(SMALL_BYTES, threads, place.present.direct)
        steps.next(f"{place.name}: random reads")
        for side, contender in sides:
            measured.row("random read", setting).add(side, contender.random_reads(offsets, threads, setting.direct))
    steps.next(f"{place.name}: small writes")
    for side, contender in sides if place.small_writes else ():
        measured.row("small write", Setting(SMALL_BYTES, 1)).add(side, contender.small_writes(place.small_writes))


def random_offsets(size_bytes: int, count: int, number: int) -> list[int]:
    """So many page-aligned places of a small read; others in each round, the same in each run."""
    rng = random.Random(SEED + number)
    return [rng.randrange(size_bytes // SMALL_BYTES) * SMALL_BYTES for _ in range(count)]


def shown(setting: Setting) -> str:
    """`4 MiB × 8, direct`."""
    block = setting.block_bytes
    size = f"{block >> 20} MiB" if block % (1 << 20) == 0 else f"{block >> 10} KiB"
    way = {None: "", True: ", direct", False: ", buffered"}[setting.direct]
    return f"{size} × {setting.threads}{way}"
