"""How long does a save hold training up, and how soon is it safe? Beside a memory copy, fio, torch.save and dcp.async_save, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckptstore_bench.contenders.catalogue import SAVERS
from ckptstore_bench.contests import contest
from ckptstore_bench.measure import Result, Rounds, figure
from ckptstore_bench.report import Figure
from ckptstore_bench.running import Steps
from ckptstore_bench.save.measure import Saves, measure
from ckptstore_bench.scratch import Scratch
from ckptstore_bench.shape import StateShape, equal_tensors

STORE, GUARDED, COPY, FIO, TORCH = "ckptstore", "ckptstore guard", "memory copy", "fio", "torch"
AS_CALLED = "dcp-default"
#: Both stage into shared memory that they keep; the second writes in a process of its own. Each round's faster one is the best setting.
BEST = ("dcp-async", "dcp-process")
ASYNC_SAVES = (*BEST, AS_CALLED)
DISK = "nvme"
HAND_OVER = f"hand-over to {DISK}"
#: First saves are made anew, with a daemon and processes of their own, this many times.
FIRST_TIMES = 3
MANY_TENSORS, SMALL_BYTES = 20_000, 8192
FROZEN = 0.9


def measure_steady(folder: Path, size_bytes: int, rounds: int, steps: Steps) -> Result:
    found = _saves(folder, equal_tensors(size_bytes, 64), [STORE, GUARDED, COPY, FIO, *ASYNC_SAVES, TORCH], rounds, steps)
    as_called = found.ratio(f"{STORE}: stall", f"{AS_CALLED}: stall")
    return Result(
        [
            *figure("save.copy", "speed of the copy in save / warm memory copy", found.ratio(f"{COPY}: stall", f"{STORE}: copy"), 0.85),
            *_at_most("save.stall.shared", "stall of save / of the best dcp.async_save", _of_fastest(found, STORE, BEST), 1.1),
            *_at_most("save.stall.as_called", f"stall of save / of {AS_CALLED}", as_called, 0.5),
            *_at_most("save.guard", "stall with guard=", [s * 1e3 for s in found.seconds[f"{GUARDED}: stall"]], 2.0, unit="ms"),
            *_at_most("save.guard.shared", "stall with guard= / of the best dcp.async_save", _of_fastest(found, GUARDED, BEST), 0.05),
            *figure(
                "save.fsynced.fio", "speed of hand-over until fsynced / fio", found.ratio(f"{FIO}: {DISK}", f"{STORE}: {HAND_OVER}"), 0.8
            ),
            *_until_fsynced(found, "as_called", AS_CALLED, [AS_CALLED], 3.0),
            *_until_fsynced(found, "shared", "the best dcp.async_save", BEST, 2.5),
            *_until_fsynced(found, "torch", TORCH, [TORCH], 2.0),
        ],
        found,
    )


def measure_first(folder: Path, size_bytes: int, rounds: int, steps: Steps) -> Result:
    """First saves of a process, with and without `reserve`, and DCP's; each time everything is made anew.

    Nobody saves again but who is compared with its own steady state: else most of what is written is for nothing.
    """
    both = Rounds()
    for number in range(min(rounds, FIRST_TIMES)):
        for reserve in (False, True):
            place = folder / f"first-{number}-{reserve}"
            names = [STORE] if reserve else [STORE, *ASYNC_SAVES]
            found = _measured(place, equal_tensors(size_bytes, 64), names, int(reserve), steps, reserve=reserve)
            for one in found:
                name = f"{one.name}{' reserved' if reserve else ''}"
                if one.first is not None and one.first.stall_s is not None and len(one.steady) == int(reserve):
                    both.add(f"{name}: first stall", one.first.stall_s)
                    for saved in one.steady:
                        both.add(f"{name}: stall", saved.stall_s or 0.0)
    first = _of_fastest(both, STORE, ASYNC_SAVES, "first stall")
    reserved = both.ratio(f"{STORE} reserved: first stall", f"{STORE} reserved: stall")
    return Result(
        [
            *_at_most("first.reserved", "stall of the first save after reserve / of its steady state", reserved, 1.3),
            *_at_most("first.dcp", "stall of the first save / of DCP's", first, 0.5),
        ],
        both,
    )


def measure_small(folder: Path, size_bytes: int, rounds: int, steps: Steps) -> Result:
    """20,000 tensors of 8 KiB, whatever the size of the others."""
    shape = equal_tensors(MANY_TENSORS * SMALL_BYTES, MANY_TENSORS)
    found = _saves(folder, shape, [STORE, COPY, *ASYNC_SAVES], rounds, steps)
    dcp = _of_fastest(found, STORE, ASYNC_SAVES)
    return Result(
        [
            *_at_most("small.stall", "20,000 tensors: stall of save / of the faster dcp.async_save", dcp, 0.2),
            *figure("small.copy", "20,000 tensors: speed / memory copy", found.ratio(f"{COPY}: stall", f"{STORE}: stall"), 0.2),
        ],
        found,
    )


def measure_incremental(folder: Path, size_bytes: int, rounds: int, steps: Steps) -> Result:
    saves = _measured(folder, equal_tensors(size_bytes, 100), [STORE], rounds, steps, incremental=True, changed=1 - FROZEN)
    store = saves[0]
    ratios = [(saved.written_bytes or 0) / changed for saved, changed in zip(store.steady, store.changed_bytes, strict=True)]
    what = "frozen 90 % of the state: bytes written / bytes changed"
    return Result([*_at_most("incremental.written", what, ratios, 1.02)], _rounds(saves))


def _saves(folder: Path, shape: StateShape, names: Sequence[str], rounds: int, steps: Steps) -> Rounds:
    return _rounds(_measured(folder, shape, names, rounds, steps))


def _measured(
    folder: Path,
    shape: StateShape,
    names: Sequence[str],
    rounds: int,
    steps: Steps,
    *,
    reserve: bool = False,
    incremental: bool = False,
    changed: float = 0.0,
) -> list[Saves]:
    contenders = [SAVERS[name] for name in names]
    with contest(contenders, shape, steps, Scratch(folder=folder), reserve=reserve, incremental=incremental) as running:
        saves = measure(running, rounds, steps, changed=changed, memory=False)
        for contender in contenders:
            if contender.role != "peer":
                running.require(contender.name)
    return saves


def _rounds(saves: Sequence[Saves]) -> Rounds:
    """`contender: what` → seconds, one a round."""
    rounds = Rounds()
    for one in saves:
        for saved in one.steady:
            if saved.stall_s is not None:
                rounds.add(f"{one.name}: stall", saved.stall_s)
            for name, seconds in (saved.reached_s | saved.parts_s).items():
                rounds.add(f"{one.name}: {name}", seconds)
    return rounds


def _at_most(name: str, what: str, values: list[float], bound: float, unit: str = "×") -> list[Figure]:
    return figure(name, what, values, bound, at_least=False, unit=unit)


def _of_fastest(found: Rounds, contender: str, peers: Sequence[str], what: str = "stall") -> list[float]:
    """The contender's time to that of the fastest peer, round by round."""
    return [1 / ratio for ratio in found.best_ratio(f"{contender}: {what}", *(f"{peer}: {what}" for peer in peers))]


def _until_fsynced(found: Rounds, name: str, said: str, peers: Sequence[str], bound: float) -> list[Figure]:
    ratios = found.best_ratio(f"{STORE}: {DISK}", *(f"{peer}: {DISK}" for peer in peers))
    return figure(f"save.fsynced.{name}", f"call until fsynced: {said} / save", ratios, bound)
