"""How fast does a state come back? Cold from NVMe beside fio and the other loaders, and from memory beside a plain copy, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from ckptstore.errors import ChecksumMismatch
from ckptstore_bench.cold import make_cold
from ckptstore_bench.figures.peers import SavedBy, close_process_group, open_process_group
from ckptstore_bench.fio import Fio
from ckptstore_bench.measure import Result, Rounds, figure
from ckptstore_bench.state import WarmCopy, make_state, same_bits, tensors_of, touch
from ckptstore_bench.workspace import Workspace

PATH = "/figures/load"
INTO, NEW, FIO = "load into existing tensors, cold", "load into new tensors, cold", "fio read"
MEMORY, COPY = "load from memory into existing tensors", "memory copy"
WAIT_S = 300.0


def measure_cold(workspace: Workspace, size_bytes: int, count: int, say: Callable[[str], None]) -> Result:
    state, rounds = make_state(size_bytes), Rounds()
    target = make_state(size_bytes, seed=1)
    fio = Fio(workspace.folder / "fio", size_bytes)
    fio.write_s()
    _save(workspace, state)
    workspace.stop_daemon()  # its segments go, so that NVMe is the nearest
    open_process_group(workspace.folder)
    try:
        with workspace.connect() as store:
            files = workspace.expect_nearest(PATH, "nvme")
            peers = SavedBy(workspace.folder / "peers", state).loaders()
            for number in range(-1, count):
                say(f"cold load: round {number + 1} of {count}" if number >= 0 else "cold load: warming up")
                into = rounds if number >= 0 else Rounds()
                _cold(into, INTO, files, lambda: tensors_of(store.load(PATH, into=target)))
                _cold(into, NEW, files, lambda: tensors_of(store.load(PATH)))
                for name, (peer_files, load) in peers.items():
                    _cold(into, name, peer_files, load)
                into.add(FIO, fio.read_s())
    finally:
        close_process_group()
    _check(same_bits(state, target))
    fastest = f"the fastest of {', '.join(peers)} / load into new tensors"
    figures = [
        figure("load.cold.fio", "speed of a cold load into existing tensors / fio O_DIRECT read", rounds.ratio(FIO, INTO), 0.7),
        figure("load.cold.peers", fastest, rounds.best_ratio(NEW, *peers), 1.0),
    ]
    return Result(figures, rounds, {"size_bytes": size_bytes, "fio": fio.version})


def measure_memory(workspace: Workspace, size_bytes: int, count: int, say: Callable[[str], None]) -> Result:
    state, rounds = make_state(size_bytes), Rounds()
    target = make_state(size_bytes, seed=1)
    warm_copy = WarmCopy(state)
    _save(workspace, state)
    with workspace.connect() as store:
        workspace.expect_nearest(PATH, "memory")
        for number in range(-1, count):
            say(f"load from memory: round {number + 1} of {count}" if number >= 0 else "load from memory: warming up")
            into = rounds if number >= 0 else Rounds()
            with into.timed(COPY):
                warm_copy()
            with into.timed(MEMORY):
                store.load(PATH, into=target)
        workspace.expect_nearest(PATH, "memory")
    _check(same_bits(state, target))
    what = "speed of a verified load from memory into existing tensors / memory copy"
    speed = figure("load.memory", what, rounds.ratio(COPY, MEMORY), 0.5)
    return Result([speed], rounds, {"size_bytes": size_bytes})


def _save(workspace: Workspace, state: dict[str, object]) -> None:
    with workspace.connect() as store:
        store.save(PATH, state, replace=True).wait("nvme", timeout_s=WAIT_S)


def _cold(rounds: Rounds, name: str, files: list[Path], load: Callable[[], list[torch.Tensor]]) -> None:
    make_cold(files)
    began_s = time.perf_counter()
    loaded = load()
    touch(loaded)
    rounds.add(name, time.perf_counter() - began_s)


def _check(same: bool) -> None:
    if not same:
        raise ChecksumMismatch("what was loaded is not what was saved", operation="bench", subject=PATH)
