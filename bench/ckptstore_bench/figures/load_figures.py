"""How fast does a state come back? Cold from NVMe beside fio and the other loaders, and from memory beside a plain copy, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckptstore_bench.contenders.catalogue import LOADERS
from ckptstore_bench.contests import contest
from ckptstore_bench.load.measure import measure
from ckptstore_bench.load.source import MEMORY, read_source
from ckptstore_bench.measure import Result, Rounds, figure
from ckptstore_bench.running import Steps
from ckptstore_bench.scratch import Scratch
from ckptstore_bench.shape import equal_tensors

INTO, NEW, COPY, FIO = "ckptstore into", "ckptstore", "memory copy", "fio"
#: Those that load from files, into memory of their own. What only maps its file is here too, since its pages are all looked at.
PEERS = ("torch", "torch-mmap", "safetensors", "dcp", "runai", "fastsafetensors")


def measure_cold(folder: Path, size_bytes: int, rounds: int, steps: Steps) -> Result:
    found = _loads(folder, size_bytes, rounds, steps, None, [INTO, NEW, FIO, *PEERS])
    peers = [name for name in PEERS if name in found.seconds]
    fastest = f"the fastest of {', '.join(peers)}"
    figures = figure("load.cold.fio", "speed of a cold load into existing tensors / fio O_DIRECT read", found.ratio(FIO, INTO), 0.85)
    figures += figure("load.cold.into", f"{fastest} / load into existing tensors", found.best_ratio(INTO, *peers), 1.3)
    figures += figure("load.cold.peers", f"{fastest} / load into new tensors", found.best_ratio(NEW, *peers), 1.0)
    return Result(figures, found)


def measure_memory(folder: Path, size_bytes: int, rounds: int, steps: Steps) -> Result:
    found = _loads(folder, size_bytes, rounds, steps, MEMORY, [INTO, NEW, COPY])
    what = "speed of a verified load from memory into existing tensors / memory copy"
    return Result(figure("load.memory", what, found.ratio(COPY, INTO), 0.65), found)


def _loads(folder: Path, size_bytes: int, rounds: int, steps: Steps, source: str | None, names: Sequence[str]) -> Rounds:
    """Seconds of each contender that could run, one a round; what it loaded was compared with what was saved."""
    scratch = Scratch(folder=folder)
    seconds = Rounds()
    with contest([LOADERS[name] for name in names], equal_tensors(size_bytes, 64), steps, scratch) as running:
        for one in measure(running, read_source(source, scratch), rounds, steps, memory=False):
            if one.role != "peer":
                running.require(one.name)
            if len(one.load_s) == rounds:
                for load_s in one.load_s:
                    seconds.add(one.name, load_s)
    return seconds
