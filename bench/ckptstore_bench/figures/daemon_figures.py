"""What does the daemon cost when nothing happens, and does anything slow down as checkpoints pile up?"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ckptstore import Store
from ckptstore_bench.costs import cpu_s
from ckptstore_bench.measure import Result, Rounds, figure
from ckptstore_bench.report import Figure
from ckptstore_bench.running import Steps
from ckptstore_bench.scratch import Scratch
from ckptstore_bench.shape import equal_tensors
from ckptstore_bench.shared_state import empty_like
from ckptstore_bench.workspace import Workspace

REST_S = 5.0
#: After a save the daemon still writes records and pre-faults; it is at rest when that is done.
SETTLE_S = 3.0
FOLDER, LISTED_FOLDER = "/figures/many", "/figures/hundred"
OPERATIONS = (
    "save until fsynced",
    "stat",
    "ls of a hundred",
    "du of a hundred",
    "load",
    "load @latest",
    "wait",
    "verify one",
    "put",
    "get",
    "rm",
)
SMALL = {"x": torch.arange(256, dtype=torch.float32)}
LISTED = 100
FILLING_THREADS = 4
#: Each operation takes milliseconds: a round has many turns.
TURNS = 20
WARM_UP_TURNS = 3
LIMIT_BYTES = 64 << 20
WAIT_S = 300.0
#: "As fast as at the start", with the noise of a busy disk.
NO_SLOWER = 1.2


def measure_rest(folder: Path, size_bytes: int, count: int, steps: Steps) -> Result:
    """CPU and memory of a daemon that has saved something and is asked nothing."""
    rounds = Rounds()
    resident_bytes = []
    state = empty_like(equal_tensors(size_bytes, 64))
    scratch = Scratch(folder=folder)
    scratch.check_room(3 * size_bytes)
    with Workspace(scratch, memory_limit_bytes=3 * (size_bytes + (64 << 20))) as workspace:
        with workspace.connect() as store:
            for number in range(2):
                store.save(f"/figures/rest-{number}", state).wait("nvme", timeout_s=WAIT_S)
            pid = store.hello().pid
        steps.say(f"the daemon at rest: {count} times {REST_S:g} s")
        time.sleep(SETTLE_S)
        for _ in range(count):
            before_s = cpu_s([pid])
            time.sleep(REST_S)
            rounds.add("cpu at rest", cpu_s([pid]) - before_s)
            resident_bytes.append(float(_own_memory_bytes(pid)))
    percent = [used_s / REST_S * 100 for used_s in rounds.seconds["cpu at rest"]]
    mebibytes = [size / 2**20 for size in resident_bytes]
    return Result(
        [
            *figure("daemon.cpu", "CPU of the daemon at rest", percent, 1.0, at_least=False, unit="% of a core"),
            *figure("daemon.memory", "memory of the daemon beyond its segments", mebibytes, 200.0, at_least=False, unit="MiB"),
        ],
        rounds,
    )


def _own_memory_bytes(pid: int) -> int:
    """Resident anonymous memory and file pages; segments are memfds, which the kernel counts as RssShmem."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines())
    return sum(int(status[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))


def measure_many(folder: Path, checkpoints: int, count: int, steps: Steps) -> Result:
    """The same operations, in turns, on a store with so many checkpoints and on one that has just begun."""
    rounds = Rounds()
    with (
        Workspace(Scratch(folder=folder / "old"), memory_limit_bytes=LIMIT_BYTES) as grown,
        Workspace(Scratch(folder=folder / "young"), memory_limit_bytes=LIMIT_BYTES) as young,
        grown.connect() as old,
        young.connect() as new,
    ):
        stores = {"young": new, "old": old}
        for store in stores.values():
            _fill(store, LISTED_FOLDER, LISTED, lambda text: None)
            store.save(f"{FOLDER}/step-{0:06d}", SMALL).wait("nvme", timeout_s=WAIT_S)
        (folder / "small").write_bytes(bytes(1024))
        _fill(old, FOLDER, checkpoints, steps.say)
        for number in range(-WARM_UP_TURNS, count * TURNS):
            for name, store in stores.items():
                for what, operation in _operations(store, folder / "small", checkpoints + 1 + WARM_UP_TURNS + number).items():
                    with (rounds if number >= 0 else Rounds()).timed(f"{what}, {name}"):
                        operation()
    figures = [found for what in OPERATIONS for found in _slowdown(rounds, what, checkpoints)]
    return Result(figures, rounds)


def _fill(store: Store, folder: str, checkpoints: int, say: Callable[[str], None]) -> None:
    def save(number: int) -> None:
        if number % 1000 == 0:
            say(f"many checkpoints: {number} of {checkpoints}")
        store.save(f"{folder}/step-{number:06d}", SMALL, step=number)

    with ThreadPoolExecutor(FILLING_THREADS) as executor:
        for _ in executor.map(save, range(1, checkpoints)):
            pass
    store.save(f"{folder}/step-{checkpoints:06d}", SMALL).wait("nvme", timeout_s=WAIT_S)


def _operations(store: Store, small: Path, number: int) -> dict[str, Callable[[], object]]:
    path, file = f"{FOLDER}/step-{number:06d}", f"{FOLDER}/file"
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.save(path, SMALL, step=number).wait("nvme", timeout_s=WAIT_S),
        lambda: store.stat(path),
        lambda: list(store.ls(LISTED_FOLDER)),
        lambda: store.du(LISTED_FOLDER),
        lambda: store.load(path),
        lambda: store.load(f"{FOLDER}/@latest"),
        lambda: store.wait(path, "nvme", timeout_s=WAIT_S),
        lambda: list(store.verify(path)),
        lambda: store.put(small, file),
        lambda: store.get(file, small.with_name("got"), replace=True),
        lambda: store.rm(file),
    )
    return dict(zip(OPERATIONS, calls, strict=True))


def _slowdown(rounds: Rounds, what: str, checkpoints: int) -> list[Figure]:
    ratios = rounds.ratio(f"{what}, old", f"{what}, young")
    name = f"many.{what.replace(' ', '_').replace('@', '')}"
    return figure(name, f"{what}: with {checkpoints} checkpoints / in a store that has just begun", ratios, NO_SLOWER, at_least=False)
