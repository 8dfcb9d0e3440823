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
from ckptstore_bench.shared_state import open_whole


class MemoryCopy:
    """This process's memory copy: all of the state, in one piece, into memory that is mapped and was written before."""

    def __init__(self, setup: Setup) -> None:
        self._source = open_whole(setup.state, setup.shape)
        self._memory = mmap.mmap(-1, self._source.nbytes)
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._destination = torch.frombuffer(self._memory, dtype=torch.int64)
        self._destination.copy_(self._source)

    def save(self, number: int) -> Saved:
        began_s = time.perf_counter()
        self._destination.copy_(self._source)
        return Saved(time.perf_counter() - began_s, {})

    def close(self) -> None:
        """Nothing outlives the process."""


class MemoryRead(MemoryCopy):
    """The same for a load; it gives no tensors, so that nothing is looked at or compared."""

    def prepare(self) -> list[Path]:
        return []

    def load(self) -> dict[str, Any]:
        self.save(0)
        return {}


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
