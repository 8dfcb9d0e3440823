"""The store itself, as a training script uses it: a client in this process, and the daemon of the run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ckptstore
from ckptstore_bench.contenders.interface import Saved, Setup
from ckptstore_bench.shared_state import empty_like, flat, open_state

FOLDER = "/bench"
LOADED = f"{FOLDER}/load"
WAIT_S = 900.0


class StoreSaver:
    def __init__(self, setup: Setup) -> None:
        self._state, self._tiers = open_state(setup.state, setup.shape), setup.tiers
        self._store = ckptstore.connect(home=setup.home)

    def save(self, number: int) -> Saved:
        """Times to the tiers are the daemon's own marks, which begin when the attempt is opened; `planning` before it is added."""
        path = f"{FOLDER}/save-{number:06d}"
        began_s = time.perf_counter()
        pending = self._store.save(path, self._state)
        stall_s = time.perf_counter() - began_s
        reached_s = {}
        for tier in ("snapshot", *self._tiers):
            pending.wait(tier, timeout_s=WAIT_S)
            reached_s[tier] = time.perf_counter() - began_s
        timings_s = pending.timings
        parts_s = {"copy": timings_s["copy_s"]}
        before_open_s = timings_s.get("plan_s", 0.0)
        for tier in ("snapshot", *self._tiers):
            if f"{tier}_s" in timings_s:
                reached_s[tier] = min(reached_s[tier], before_open_s + timings_s[f"{tier}_s"])
        first = next((tier for tier in self._tiers if f"{tier}_s" in timings_s), None)
        if first is not None and "snapshot_s" in timings_s:
            parts_s["hand-over to " + first] = timings_s[f"{first}_s"] - timings_s["snapshot_s"]
        self._store.rm(path)
        return Saved(stall_s, reached_s, parts_s)

    def daemon_pid(self) -> int:
        return self._store.hello().pid

    def close(self) -> None:
        self._store.close()


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
