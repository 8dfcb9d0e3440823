"""What can the machine itself do? A warm memory copy bounds every stall, the disk's own speed every durable save and cold load."""

from __future__ import annotations

import mmap
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from ckptstore_bench.contenders.interface import CannotRun, Saved, Setup
from ckptstore_bench.fio import Fio
from ckptstore_bench.shared_state import empty_like, flat, open_state


class MemoryCopy:
    """This process's memory copy: the same tensors into memory that is mapped and was written before, by one call of torch."""

    def __init__(self, setup: Setup) -> None:
        self._sources = list(flat(open_state(setup.state, setup.shape)).values())
        offsets, size_bytes = setup.shape.offsets()
        self._memory = mmap.mmap(-1, size_bytes)
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._destinations = [
            torch.frombuffer(self._memory, dtype=source.dtype, count=source.numel(), offset=offset).reshape(source.shape)
            for source, offset in zip(self._sources, offsets, strict=True)
        ]
        self.save(-1)

    def save(self, number: int) -> Saved:
        began_s = time.perf_counter()
        torch._foreach_copy_(self._destinations, self._sources)
        return Saved(time.perf_counter() - began_s, {})

    def close(self) -> None:
        """Nothing outlives the process."""


class MemoryRead:
    """The same for a load: out of the shared state, which was read before, into tensors that were written before."""

    def __init__(self, setup: Setup) -> None:
        self._sources = flat(open_state(setup.state, setup.shape))
        self._destinations = flat(empty_like(setup.shape))

    def prepare(self) -> list[Path]:
        return []

    def load(self) -> dict[str, Any]:
        torch._foreach_copy_(list(self._destinations.values()), list(self._sources.values()))
        return self._destinations

    def close(self) -> None:
        """Nothing outlives the process."""


def _fio(setup: Setup) -> Fio:
    if shutil.which("fio") is None:
        raise CannotRun("the program fio is not installed: apt-get install fio")
    return Fio(setup.folder, setup.shape.size_bytes)


class FioWrite:
    def __init__(self, setup: Setup) -> None:
        self._fio, self._disk = _fio(setup), setup.disk

    def save(self, number: int) -> Saved:
        return Saved(None, {self._disk: self._fio.write_s()})

    def close(self) -> None:
        """Its file goes with the folder."""


class FioRead:
    """Its own clock: fio's start is no part of a read. So `load` gives no tensors, and `read_s` is asked."""

    def __init__(self, setup: Setup) -> None:
        self._fio = _fio(setup)

    def prepare(self) -> list[Path]:
        self._fio.write_s()
        return []

    def read_s(self) -> float:
        return self._fio.read_s()

    def load(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Its file goes with the folder."""
