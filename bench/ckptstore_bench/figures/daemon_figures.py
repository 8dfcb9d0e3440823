"""What does the daemon cost when nothing happens, and does anything slow down as checkpoints pile up?"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

from ckptstore_bench.figures.measure import Figure, Result, Rounds, Say
from ckptstore_bench.figures.state import make_state
from ckptstore_bench.figures.workspace import Workspace

REST_S = 5.0
#: After a save the daemon still writes records and pre-faults; it is at rest when that is done.
SETTLE_S = 3.0
FOLDER = "/figures/many"
#: How many operations at the start and at the end of the pile are timed.
TIMED = 100
WAIT_S = 60.0
#: "As fast as at the start", with the noise of a busy disk.
NO_SLOWER = 1.2


def measure_rest(workspace: Workspace, size_bytes: int, count: int, say: Say) -> Result:
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
            Figure("daemon.cpu", "CPU of the daemon at rest", percent, 1.0, at_least=False, unit="% of a core"),
            Figure("daemon.memory", "memory of the daemon beyond its segments", mebibytes, 200.0, at_least=False, unit="MiB"),
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


def measure_many(workspace: Workspace, checkpoints: int, say: Say) -> Result:
    """The same operations among the first hundred checkpoints and among the last of so many."""
    rounds = Rounds()
    state = {"x": torch.arange(256, dtype=torch.float32), "step": 0}
    with workspace.connect() as store:

        def operations(number: int) -> dict[str, Callable[[], object]]:
            path = f"{FOLDER}/step-{number:06d}"
            return {
                "save until fsynced": lambda: store.save(path, state, step=number).wait("nvme", timeout_s=WAIT_S),
                "stat": lambda: store.stat(path),
                "ls of a page": lambda: list(islice(store.ls(FOLDER), TIMED)),
                "load": lambda: store.load(path),
                "load @latest": lambda: store.load(f"{FOLDER}/@latest"),
            }

        for number in range(checkpoints):
            if number % 1000 == 0:
                say(f"many checkpoints: {number} of {checkpoints}")
            if TIMED <= number < checkpoints - TIMED:
                store.save(f"{FOLDER}/step-{number:06d}", state, step=number)
                continue
            when = "first" if number < TIMED else "last"
            for name, operation in operations(number).items():
                with rounds.timed(f"{name}, {when}"):
                    operation()
    names = ("save until fsynced", "stat", "ls of a page", "load", "load @latest")
    return Result([_slowdown(rounds, name, checkpoints) for name in names], rounds, {"checkpoints": checkpoints})


def _slowdown(rounds: Rounds, name: str, checkpoints: int) -> Figure:
    first, last = (statistics.median(rounds.seconds[f"{name}, {when}"]) for when in ("first", "last"))
    what = f"{name}: median of the last {TIMED} of {checkpoints} / of the first"
    return Figure(f"many.{name.replace(' ', '_')}", what, [last / first], NO_SLOWER, at_least=False)
