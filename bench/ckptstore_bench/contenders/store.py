"""The store itself, as a training script uses it: a client in this process, and the daemon of the run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

import ckptstore
from ckptstore.config import read_settings
from ckptstore_bench.contenders.interface import Saved, Setup
from ckptstore_bench.shared_state import empty_like, flat, open_state

FOLDER = "/bench"
LOADED = f"{FOLDER}/load"
WAIT_S = 900.0


class StoreSaver:
    """`store.save`, with `incremental=True` and after `store.reserve` where the run was told so."""

    def __init__(self, setup: Setup) -> None:
        self._setup, self._state = setup, open_state(setup.state, setup.shape)
        self._store = ckptstore.connect(home=setup.home)
        self._root = next((tier.path for tier in read_settings(home=setup.home).effective_tiers if tier.path is not None), None)
        self._last: str | None = None
        if setup.reserve:
            self._store.reserve(self._state).result(timeout=WAIT_S)

    def save(self, number: int) -> Saved:
        """Each save keeps the one before it until it is done: an incremental one refers to it."""
        path = f"{FOLDER}/{self._setup.folder.name}/save-{number:06d}"
        began_s = time.perf_counter()
        pending, stall_s, parts_s = self._save(path)
        reached_s = self._arrivals(pending, began_s)
        timings_s = pending.timings
        first = next((tier for tier in self._setup.tiers if f"{tier}_s" in timings_s), None)
        if first is not None and "snapshot_s" in timings_s:
            parts_s[f"hand-over to {first}"] = timings_s[f"{first}_s"] - timings_s["snapshot_s"]
        written_bytes = self._written_bytes(path) if self._setup.incremental else None
        if self._last is not None:
            self._store.rm(self._last)
        self._last = path
        return Saved(stall_s, reached_s, parts_s, written_bytes)

    def _save(self, path: str) -> tuple[ckptstore.PendingCheckpoint, float, dict[str, float]]:
        began_s = time.perf_counter()
        pending = self._store.save(path, self._state, incremental=self._setup.incremental)
        return pending, time.perf_counter() - began_s, {"copy": pending.stall_s["copy"]}

    def _arrivals(self, pending: ckptstore.PendingCheckpoint, began_s: float) -> dict[str, float]:
        """Since the call. The daemon's own marks, which begin when the attempt was opened, where they are earlier than our wait's end."""
        reached_s: dict[str, float] = {}
        for tier in ("snapshot", *self._setup.tiers):
            pending.wait(tier, timeout_s=WAIT_S)
            reached_s[tier] = time.perf_counter() - began_s
        timings_s = pending.timings
        for tier, seen_s in reached_s.items():
            reached_s[tier] = min(seen_s, timings_s.get("plan_s", 0.0) + timings_s.get(f"{tier}_s", seen_s))
        return reached_s

    def _written_bytes(self, path: str) -> int | None:
        """What lies below the checkpoint's own path in the first posix tier."""
        if self._root is None:
            return None
        return sum(file.stat().st_size for file in (self._root / f"objects{path}").rglob("*") if file.is_file())

    def daemon_pid(self) -> int:
        return self._store.hello().pid

    def close(self) -> None:
        self._store.close()


class GuardedSaver(StoreSaver):
    """`store.save(guard=optimizer)` in a loop that computes: the stall is the call and what the next step waits for.

    Forward and backward are matrix products on every core, for as long as the copy takes at 1.5 GB/s, which is longer than it should.
    """

    COMPUTE_BYTES_PER_S = 1.5e9
    LEAST_COMPUTE_S = 0.05
    MATRIX = 512

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        parameters = {
            group: {name: torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point()) for name, tensor in part.items()}
            for group, part in self._state.items()
            if isinstance(part, dict)
        }
        self._state = {**self._state, **parameters}
        # No gradients ever come, so that its step is only what the guard makes of it.
        self._optimizer = torch.optim.SGD([parameter for part in parameters.values() for parameter in part.values()], lr=0.1)
        self._compute_s = max(self.LEAST_COMPUTE_S, setup.shape.size_bytes / self.COMPUTE_BYTES_PER_S)
        self._matrix = torch.randn(self.MATRIX, self.MATRIX)

    def _save(self, path: str) -> tuple[ckptstore.PendingCheckpoint, float, dict[str, float]]:
        began_s = time.perf_counter()
        pending = self._store.save(path, self._state, guard=self._optimizer, incremental=self._setup.incremental)
        called_s = time.perf_counter() - began_s
        while time.perf_counter() - began_s < self._compute_s:
            torch.mm(self._matrix, self._matrix)
        stepped_s = time.perf_counter()
        self._optimizer.step()
        waited_s = time.perf_counter() - stepped_s
        return pending, called_s + waited_s, {"call": called_s, "wait of the next step": waited_s}


class StoreLoader:
    """Into new tensors."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._store = ckptstore.connect(home=setup.home)

    def prepare(self) -> list[Path]:
        """The run saves for both loaders, makes the source the nearest, and knows its files."""
        return []

    def load(self) -> dict[str, Any]:
        return flat(self._store.load(LOADED))

    def close(self) -> None:
        self._store.close()


class StoreIntoLoader(StoreLoader):
    """Into tensors that exist and were written before, as a training script resumes."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._target = empty_like(setup.shape)

    def load(self) -> dict[str, Any]:
        return flat(self._store.load(LOADED, into=self._target))
