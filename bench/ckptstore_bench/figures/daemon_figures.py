"""What does the daemon cost when nothing happens, and does anything slow down as checkpoints pile up?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ckptstore import Store
from ckptstore_bench.measure import Result, Rounds, figure
from ckptstore_bench.report import Figure
from ckptstore_bench.scratch import Scratch
from ckptstore_bench.state import make_state
from ckptstore_bench.workspace import Workspace

REST_S = 5.0
#: After a save the daemon still writes records and pre-faults; it is at rest when that is done.
SETTLE_S = 3.0
FOLDER, LISTED_FOLDER = "/figures/many", "/figures/hundred"
OPERATIONS = ("save until fsynced", "stat", "ls of a hundred", "load", "load @latest")
SMALL = {"x": torch.arange(256, dtype=torch.float32)}
LISTED = 100
FILLING_THREADS = 4
#: Each operation takes milliseconds: a round has many turns.
TURNS = 20
WARM_UP_TURNS = 3
YOUNG_LIMIT_BYTES = 64 << 20
WAIT_S = 300.0
#: "As fast as at the start", with the noise of a busy disk.
NO_SLOWER = 1.2


def measure_rest(workspace: Workspace, size_bytes: int, count: int, say: Callable[[str], None]) -> Result:
    """CPU and memory of a daemon that has saved something and is asked nothing."""
    rounds = Rounds()
    with workspace.connect() as store:
        for number in range(2):
            store.save(f"/figures/rest-{number}", make_state(size_bytes)).wait("nvme", timeout_s=300.0)
        pid = store.hello().pid
    say(f"the daemon at rest: {count} times {REST_S:g} s")
    time.sleep(SETTLE_S)
    resident_bytes = []
    for _ in range(count):
        before_s = _cpu_s(pid)
        time.sleep(REST_S)
        rounds.add("cpu at rest", _cpu_s(pid) - before_s)
        resident_bytes.append(float(_own_memory_bytes(pid)))
    percent = [used_s / REST_S * 100 for used_s in rounds.seconds["cpu at rest"]]
    mebibytes = [size / 2**20 for size in resident_bytes]
    return Result(
        [
            figure("daemon.cpu", "CPU of the daemon at rest", percent, 1.0, at_least=False, unit="% of a core"),
            figure("daemon.memory", "memory of the daemon beyond its segments", mebibytes, 200.0, at_least=False, unit="MiB"),
        ],
        rounds,
    )


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _own_memory_bytes(pid: int) -> int:
    """Resident anonymous memory and file pages; segments are memfds, which the kernel counts as RssShmem."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines())
    return sum(int(status[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))


def measure_many(workspace: Workspace, checkpoints: int, count: int, say: Callable[[str], None]) -> Result:
    """The same operations, in turns, on a store with so many checkpoints and on one that has just begun."""
    rounds = Rounds()
    with (
        Workspace(Scratch(folder=workspace.folder / "young"), memory_limit_bytes=YOUNG_LIMIT_BYTES) as young,
        workspace.connect() as old,
        young.connect() as new,
    ):
        stores = {"young": new, "old": old}
        for store in stores.values():
            _fill(store, LISTED_FOLDER, LISTED, lambda text: None)
            store.save(f"{FOLDER}/step-{0:06d}", SMALL).wait("nvme", timeout_s=WAIT_S)
        _fill(old, FOLDER, checkpoints, say)
        for number in range(-WARM_UP_TURNS, count * TURNS):
            for name, store in stores.items():
                for what, operation in _operations(store, checkpoints + 1 + WARM_UP_TURNS + number).items():
                    with (rounds if number >= 0 else Rounds()).timed(f"{what}, {name}"):
                        operation()
    figures = [_slowdown(rounds, what, checkpoints) for what in OPERATIONS]
    return Result(figures, rounds, {"checkpoints": checkpoints})


def _fill(store: Store, folder: str, checkpoints: int, say: Callable[[str], None]) -> None:
    def save(number: int) -> None:
        if number % 1000 == 0:
            say(f"many checkpoints: {number} of {checkpoints}")
        store.save(f"{folder}/step-{number:06d}", SMALL, step=number)

    with ThreadPoolExecutor(FILLING_THREADS) as executor:
        for _ in executor.map(save, range(1, checkpoints)):
            pass
    store.save(f"{folder}/step-{checkpoints:06d}", SMALL).wait("nvme", timeout_s=WAIT_S)


def _operations(store: Store, number: int) -> dict[str, Callable[[], object]]:
    path = f"{FOLDER}/step-{number:06d}"
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.save(path, SMALL, step=number).wait("nvme", timeout_s=WAIT_S),
        lambda: store.stat(path),
        lambda: list(store.ls(LISTED_FOLDER)),
        lambda: store.load(path),
        lambda: store.load(f"{FOLDER}/@latest"),
    )
    return dict(zip(OPERATIONS, calls, strict=True))


def _slowdown(rounds: Rounds, what: str, checkpoints: int) -> Figure:
    ratios = rounds.ratio(f"{what}, old", f"{what}, young")
    name = f"many.{what.replace(' ', '_').replace('@', '')}"
    return figure(name, f"{what}: with {checkpoints} checkpoints / in a store that has just begun", ratios, NO_SLOWER, at_least=False)
