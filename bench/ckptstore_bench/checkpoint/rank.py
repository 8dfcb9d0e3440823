"""One rank of the workload: a process with its share of the state, which does what the pipe says, in step with the others.

Every timed act begins at a barrier of all ranks, as MLPerf's does. Ctrl-C in the terminal is for the parent, which ends us; if the parent
dies, so do we (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np
import torch

from ckptstore.errors import ChecksumMismatch, CkptStoreError
from ckptstore_bench.checkpoint.ways import WAYS, Rank, Saved, State, Way

_PR_SET_PDEATHSIG = 1
_DTYPES = {2: torch.float16, 4: torch.float32}
#: A step of the compute loop multiplies matrices of this many rows: milliseconds on any processor.
MATRIX_ROWS = 256
#: How long a rank waits for the others: as long as the slowest may take to make its state.
BARRIER_TIMEOUT_S = 1800.0


def serve(pipe: Connection, barrier: Barrier, rank: Rank, parent: int) -> None:
    """The body of the process. Answers are ("done", value) or ("failed", error)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # it has died before we asked to be told
    try:
        worker = Worker(rank, barrier)
        pipe.send(("done", None))
        while (asked := pipe.recv()) is not None:
            method, arguments = asked
            pipe.send(("done", getattr(worker, method)(*arguments)))
        worker.disconnect()
    except EOFError:
        return
    except CkptStoreError as error:
        barrier.abort()
        pipe.send(("failed", error))
    except Exception as error:  # noqa: BLE001 — the top of this process: the parent raises it
        barrier.abort()
        pipe.send(("failed", CkptStoreError(f"{type(error).__name__}: {error}", operation="bench", subject=f"rank {rank.rank}")))


class Worker:
    def __init__(self, rank: Rank, barrier: Barrier) -> None:
        self._rank = rank
        self._barrier = barrier
        self._state = random_state(rank)
        self._ways: dict[str, Way] = {}
        # A rank has the share of the cores that it would have beside the others.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // rank.processes))
        self._matrix = torch.rand(MATRIX_ROWS, MATRIX_ROWS)

    def connect(self, ways: list[str]) -> None:
        self._ways = {name: WAYS[name](self._rank) for name in ways}

    def disconnect(self) -> None:
        for way in self._ways.values():
            way.close()
        self._ways = {}

    def steps(self, count: int) -> float:
        """Seconds of so many steps of a training loop that saves nothing."""
        self._together()
        return self._compute(count)

    def save(self, way: str, number: int) -> Saved:
        """As MLPerf times it: until the part is durable."""
        self._together()
        return self._ways[way].save(number, self._state)

    def save_within_steps(self, way: str, number: int, count: int) -> tuple[float, Saved]:
        """(seconds of so many steps with a save before the first, what the save took)."""
        self._together()
        began_s = time.perf_counter()
        self._ways[way].begin(number, self._state)
        self._compute(count)
        seconds = time.perf_counter() - began_s
        return seconds, self._ways[way].finish()

    def load(self, way: str, number: int, compare: bool) -> float:
        self._together()
        began_s = time.perf_counter()
        loaded = self._ways[way].load(number)
        seconds = time.perf_counter() - began_s
        if compare and not _same(loaded, self._state):
            raise ChecksumMismatch("what was loaded is not what was saved", operation="bench", subject=f"{way}, rank {self._rank.rank}")
        return seconds

    def remove(self, way: str, number: int) -> None:
        self._ways[way].remove(number)

    def _together(self) -> None:
        gc.collect()  # the last act's garbage is not this one's cost
        self._barrier.wait(BARRIER_TIMEOUT_S)

    def _compute(self, count: int) -> float:
        began_s = time.perf_counter()
        for _ in range(count):
            torch.mm(self._matrix, self._matrix)
        return time.perf_counter() - began_s


def random_state(rank: Rank) -> State:
    """`{file: {tensor: values}}`: random bits, so that nothing on the way can compress or recognise them; other ones in each rank."""
    generator = np.random.default_rng(rank.rank)
    state: State = {}
    for file in rank.files:
        tensors: dict[str, Any] = {}
        for tensor in file.tensors:
            values = torch.empty(tensor.elements, dtype=_DTYPES[tensor.item_bytes])
            _fill(values.view(torch.uint8).numpy(), generator)
            tensors[tensor.name] = values
        state[file.name] = tensors
    return state


def _fill(memory: Any, generator: np.random.Generator, step: int = 16 << 20) -> None:
    for start in range(0, len(memory), step):
        part = memory[start : start + step]
        part[:] = np.frombuffer(generator.bytes(len(part)), np.uint8)


def _same(one: State, other: State) -> bool:
    """Bytes, not values: random bits hold NaNs."""
    return one.keys() == other.keys() and all(
        one[file].keys() == other[file].keys()
        and all(torch.equal(one[file][name].view(torch.uint8), other[file][name].view(torch.uint8)) for name in one[file])
        for file in one
    )
