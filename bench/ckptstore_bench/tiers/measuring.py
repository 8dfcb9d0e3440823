"""The whole of `bench tiers`: scratch places, room, every tier in its turn, the best of each, and the configuration if asked.

All refusals come before the first byte is written. What was written is gone at the end, whatever ended it (`Scratch`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ckptstore.config import Settings, TierSettings, read_settings
from ckptstore.errors import InvalidInput
from ckptstore_bench.cold import make_cold
from ckptstore_bench.report import Report
from ckptstore_bench.running import Steps
from ckptstore_bench.scratch import Scratch
from ckptstore_bench.tiers.apply import MEMORY, Changes, apply_changes
from ckptstore_bench.tiers.best import Best, best_huge_pages, best_of
from ckptstore_bench.tiers.contender import SMALL_BYTES, Setting, aligned
from ckptstore_bench.tiers.device_files import FileDevice
from ckptstore_bench.tiers.device_memory import fresh_segment
from ckptstore_bench.tiers.places import Extent, check_memory, check_room, memory_place, object_place, posix_place
from ckptstore_bench.tiers.sweep import Measured, Place, steps_of, sweep
from ckptstore_bench.tiers.tiers_report import TierResult, tiers_report

#: In the tier at once: what is read, through ckptstore and beside it, and what is being written.
FILES_AT_ONCE = 3
#: A size is a whole number of these, so that O_DIRECT takes all of it and S3 its parts.
STEP_BYTES = 4 << 20


@dataclass(frozen=True)
class Request:
    """What the command was asked for."""

    size_bytes: int
    rounds: int
    extent: Extent
    only: tuple[str, ...]
    home: Path | None
    folder: Path | None
    apply: bool


def measure(steps: Steps, request: Request) -> Report:
    size_bytes = -(-request.size_bytes // STEP_BYTES) * STEP_BYTES
    configured = Settings(home=request.folder) if request.folder is not None else read_settings(home=request.home)
    scratch = Scratch(home=request.home, folder=request.folder)
    tiers = _chosen(scratch.tiers, request.only)
    check_memory(size_bytes)
    scratch.check_room(FILES_AT_ONCE * size_bytes)
    for tier in tiers:
        own = configured.tier(tier.name)
        if own is not None:
            check_room(own, own.path, FILES_AT_ONCE * size_bytes)
    with scratch:
        data = _random_bytes(size_bytes)
        results = _measure_all(steps, request, configured, tiers, scratch.home, data)
        notes, changes = _advice(results, request)
        if request.apply and changes:
            notes.append(f"Written to {apply_changes(changes, configured.home)}; a daemon that runs reads it at its next start.")
        settings = asdict(request) | {"size_bytes": size_bytes, "random_bytes": True, "tiers": scratch.described()}
        return tiers_report(results, rounds=request.rounds, settings=_plain(settings), notes=notes, folder=scratch.home)


def _chosen(tiers: tuple[TierSettings, ...], only: Sequence[str]) -> list[TierSettings]:
    known = [MEMORY, *(tier.name for tier in tiers)]
    if unknown := set(only) - set(known):
        raise InvalidInput(f"there is no tier {sorted(unknown)[0]!r}", operation="bench", hint=f"known are: {', '.join(known)}")
    return [tier for tier in tiers if not only or tier.name in only]


def _measure_all(
    steps: Steps, request: Request, configured: Settings, tiers: list[TierSettings], home: Path, data: memoryview
) -> list[TierResult]:
    if not request.extent.warm:
        for tier in tiers:
            if tier.path is not None:
                refuse_warm(tier.path)
    makers: list[tuple[TierSettings | None, Callable[[], Place]]] = []
    if not request.only or MEMORY in request.only:
        huge_pages = configured.memory.huge_pages
        makers.append((None, lambda: memory_place(aligned(len(data)), request.extent, huge_pages=huge_pages)))
    makers += [(tier, _maker(tier, home, request.extent)) for tier in tiers]
    results = []
    for settings, make in makers:
        place = make()
        steps.plan(steps_of(place, request.rounds))
        measured = sweep(place, data, request.rounds, steps)
        if settings is None:
            results.append(_memory_result(measured, data, request.rounds, configured.memory.huge_pages))
            continue
        if settings.path is not None:
            _fsyncs(measured, settings, request)
        best = best_of(measured, settings)
        results.append(TierResult(measured, best, now=str(place.present), advice=_words(best.changes), size_bytes=len(data)))
    return results


def _maker(tier: TierSettings, home: Path, extent: Extent) -> Callable[[], Place]:
    return lambda: posix_place(tier, home, extent) if tier.kind == "posix" else object_place(tier, home, extent)


def refuse_warm(folder: Path) -> None:
    """TierUnavailable where files stay in the page cache: a buffered read could not be cold."""
    probe = folder / "cold.probe"
    probe.write_bytes(bytes(16 * SMALL_BYTES))
    try:
        make_cold([probe], whole_cache=False)
    finally:
        probe.unlink()


def _fsyncs(measured: Measured, tier: TierSettings, request: Request) -> None:
    """The device's fsync by itself: what each durable write pays at least once."""
    assert tier.path is not None
    device = FileDevice(tier.path / "device", tier.name)
    for _ in range(request.rounds):
        measured.row("fsync", Setting(SMALL_BYTES, 1)).add("device", device.fsyncs(request.extent.small_writes))


def _memory_result(measured: Measured, data: memoryview, rounds: int, present: bool) -> TierResult:
    touched: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for huge_pages in (True, False):
            touched[huge_pages].append(fresh_segment(data, huge_pages=huge_pages).seconds)
    best, huge = best_of(measured, None), best_huge_pages(touched, present)
    changes = {} if huge == present else {"huge_pages": huge}
    best = Best(best.setting, best.write, best.read, best.device_write, best.device_read, changes)
    now = f"huge_pages = {str(present).lower()}"
    return TierResult(measured, best, now=now, advice=_words(changes), first_touch=touched, size_bytes=len(data))


def _advice(results: list[TierResult], request: Request) -> tuple[list[str], Changes]:
    changes = {result.measured.place.name: result.best.changes for result in results if result.best.changes}
    if not changes:
        return ["The configuration has the best settings already, or none that is clearly better was found."], {}
    told = [f"{name}: {_words(values)} is clearly better than what is configured." for name, values in changes.items()]
    return (told if request.apply else [*told, "--apply writes this to the configuration."]), changes


def _words(changes: Mapping[str, object]) -> str:
    flat = {key: inner for key, value in changes.items() for key, inner in (value.items() if isinstance(value, dict) else [(key, value)])}
    return ", ".join(f"{key} = {str(value).lower() if isinstance(value, bool) else value}" for key, value in flat.items()) or "as it is"


def _random_bytes(size_bytes: int) -> memoryview:
    """Page-aligned, and nothing that a disk or a file system could compress."""
    view = aligned(size_bytes)
    generator = np.random.default_rng(0)
    for start in range(0, size_bytes, STEP_BYTES):
        view[start : start + STEP_BYTES] = generator.bytes(STEP_BYTES)
    return view


def _plain(settings: dict[str, object]) -> dict[str, object]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
