"""safetensors: one file, JSON header, raw tensors. Its loader maps the file, so every page is touched before the clock stops."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import safetensors.torch

from ckptstore_bench.contenders.durable import fsync_all
from ckptstore_bench.contenders.interface import Saved, Setup
from ckptstore_bench.shared_state import flat, open_state


class SafetensorsSaver:
    def __init__(self, setup: Setup) -> None:
        self._tensors = flat(open_state(setup.state, setup.shape))
        self._disk, self._file = setup.disk, setup.folder / "state.safetensors"

    def save(self, number: int) -> Saved:
        self._file.unlink(missing_ok=True)
        began_s = time.perf_counter()
        safetensors.torch.save_file(self._tensors, self._file)
        stall_s = time.perf_counter() - began_s
        fsync_all(self._file)
        return Saved(stall_s, {self._disk: time.perf_counter() - began_s})

    def close(self) -> None:
        self._file.unlink(missing_ok=True)


class SafetensorsLoader:
    def __init__(self, setup: Setup) -> None:
        self._setup, self._file = setup, setup.folder / "state.safetensors"

    def prepare(self) -> list[Path]:
        safetensors.torch.save_file(flat(open_state(self._setup.state, self._setup.shape)), self._file)
        fsync_all(self._file)
        return [self._file]

    def load(self) -> dict[str, Any]:
        return dict(safetensors.torch.load_file(self._file))

    def close(self) -> None:
        self._file.unlink(missing_ok=True)
