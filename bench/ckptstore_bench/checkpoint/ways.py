"""How does a rank save its part: through ckptstore, or as MLPerf's own program does, with torch.save and fsync, file by file?

Both save the same tensors. A way is used by one process, its rank. `save` returns when the part is durable, which is what MLPerf times;
`begin` returns as soon as training could go on, and `finish` says when it was durable.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

import ckptstore
from ckptstore_bench.checkpoint.workload import StateFile

WAIT_S = 3600.0
STORE, TORCH = "ckptstore", "torch.save"
#: What each is called in the namespace, or in a folder: as DLIO calls it.
State = dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Rank:
    """Who saves, and where. `group` is what all ranks of the run share."""

    rank: int
    processes: int
    files: tuple[StateFile, ...]
    home: Path
    folder: Path
    tier: str
    tiers: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class Saved:
    """Seconds from the call: until training could go on, until durable, and until each tier had all ranks' parts."""

    stall_s: float
    durable_s: float
    reached_s: dict[str, float]


class Way(Protocol):
    def save(self, number: int, state: State) -> Saved: ...

    def begin(self, number: int, state: State) -> None: ...

    def finish(self) -> Saved: ...

    def load(self, number: int) -> State: ...

    def remove(self, number: int) -> None: ...

    def close(self) -> None: ...


def name_of(number: int) -> str:
    return f"global_epoch1_step{number}"


class StoreWay:
    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._store = ckptstore.connect(home=rank.home, group=rank.group)
        self._pending: Any = None
        self._began_s = self._stall_s = 0.0

    def save(self, number: int, state: State) -> Saved:
        self.begin(number, state)
        self._pending.wait(self._rank.tier, timeout_s=WAIT_S)
        durable_s = time.perf_counter() - self._began_s
        return Saved(self._stall_s, durable_s, {self._rank.tier: durable_s})

    def begin(self, number: int, state: State) -> None:
        rank = self._rank
        self._began_s = time.perf_counter()
        self._pending = self._store.save(_path(number), state, step=number, rank=rank.rank, world_size=rank.processes)
        self._stall_s = time.perf_counter() - self._began_s

    def finish(self) -> Saved:
        """Times to the tiers are the daemon's own marks, since nobody waited while the training loop went on."""
        reached_s = {}
        for tier in self._rank.tiers:
            self._pending.wait(tier, timeout_s=WAIT_S)
            reached_s[tier] = time.perf_counter() - self._began_s
        marks_s = self._pending.timings
        reached_s = {tier: min(seconds, marks_s.get(f"{tier}_s", seconds)) for tier, seconds in reached_s.items()}
        return Saved(self._stall_s, reached_s[self._rank.tier], reached_s)

    def load(self, number: int) -> State:
        loaded: State = self._store.load(_path(number), rank=self._rank.rank)
        return loaded

    def remove(self, number: int) -> None:
        """One rank removes for all."""
        if self._rank.rank == 0:
            self._store.rm(_path(number))

    def close(self) -> None:
        self._store.close()


class TorchWay:
    """DLIO's: `torch.save` to an open file, then fsync of it, one file after the other. It has no folders' fsync, and no rename."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._saved: Saved | None = None

    def save(self, number: int, state: State) -> Saved:
        folder = self._rank.folder / name_of(number)
        began_s = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        for name, tensors in state.items():
            with (folder / name).open("wb") as file:
                torch.save(tensors, file)
                file.flush()
                os.fsync(file.fileno())
        seconds = time.perf_counter() - began_s
        return Saved(seconds, seconds, {self._rank.tier: seconds})

    def begin(self, number: int, state: State) -> None:
        self._saved = self.save(number, state)

    def finish(self) -> Saved:
        assert self._saved is not None, "finish follows begin"
        return self._saved

    def load(self, number: int) -> State:
        folder = self._rank.folder / name_of(number)
        return {file.name: torch.load(folder / file.name, weights_only=True) for file in self._rank.files}

    def remove(self, number: int) -> None:
        if self._rank.rank == 0:
            shutil.rmtree(self._rank.folder / name_of(number), ignore_errors=True)

    def close(self) -> None:
        """The run removes the files."""


def _path(number: int) -> str:
    return f"/mlperf/{name_of(number)}"


WAYS: dict[str, type[StoreWay] | type[TorchWay]] = {STORE: StoreWay, TORCH: TorchWay}
