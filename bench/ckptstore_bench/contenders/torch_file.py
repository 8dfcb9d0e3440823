"""torch.save and torch.load: one file, pickled structure, raw tensors in an uncompressed zip. `mmap=True` is its fast load."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from ckptstore_bench.contenders.durable import fsync_all
from ckptstore_bench.contenders.interface import Saved, Setup
from ckptstore_bench.shared_state import flat, open_state


class TorchSaver:
    def __init__(self, setup: Setup) -> None:
        self._state, self._disk, self._file = open_state(setup.state, setup.shape), setup.disk, setup.folder / "state.pt"

    def save(self, number: int) -> Saved:
        self._file.unlink(missing_ok=True)
        began_s = time.perf_counter()
        torch.save(self._state, self._file)
        stall_s = time.perf_counter() - began_s
        fsync_all(self._file)
        return Saved(stall_s, {self._disk: time.perf_counter() - began_s})

    def close(self) -> None:
        self._file.unlink(missing_ok=True)


class TorchLoader:
    mmap = False

    def __init__(self, setup: Setup) -> None:
        self._setup, self._file = setup, setup.folder / "state.pt"

    def prepare(self) -> list[Path]:
        torch.save(open_state(self._setup.state, self._setup.shape), self._file)
        fsync_all(self._file)
        return [self._file]

    def load(self) -> dict[str, Any]:
        return flat(torch.load(self._file, weights_only=True, mmap=self.mmap, map_location="cpu"))

    def close(self) -> None:
        self._file.unlink(missing_ok=True)


class TorchMmapLoader(TorchLoader):
    mmap = True
