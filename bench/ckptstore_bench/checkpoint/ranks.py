"""All ranks of a run, as their parent has them: started together, given the same task together, ended together.

One thread drives it. If a rank fails, or dies, the others are released from their barrier and the error is raised; leaving the block ends
every process, by the pipe if it can, else by force.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

from ckptstore.errors import CkptStoreError
from ckptstore_bench.checkpoint.rank import serve
from ckptstore_bench.checkpoint.ways import Rank
from ckptstore_bench.interruption import uninterrupted

TASK_TIMEOUT_S = 3600.0
END_TIMEOUT_S = 10.0


class Ranks:
    def __init__(self, ranks: Sequence[Rank]) -> None:
        context = multiprocessing.get_context("spawn")
        self._barrier = context.Barrier(len(ranks))
        self._pipes, self._processes = [], []
        for rank in ranks:
            ours, theirs = context.Pipe()
            arguments = (theirs, self._barrier, rank, os.getpid())
            self._processes.append(context.Process(target=serve, args=arguments, name=f"bench-rank-{rank.rank}", daemon=True))
            self._pipes.append((ours, theirs))

    def __enter__(self) -> Ranks:
        try:
            for process in self._processes:
                process.start()
            for _, theirs in self._pipes:
                theirs.close()
            self._answers()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with uninterrupted():
            self._end()

    def all_do(self, method: str, *arguments: Any) -> list[Any]:
        """What every rank gives, in their order."""
        for ours, _ in self._pipes:
            with contextlib.suppress(BrokenPipeError):  # it has died: its answer says so
                ours.send((method, arguments))
        return self._answers()

    def _answers(self) -> list[Any]:
        answers: dict[int, Any] = {}
        deadline_s = time.monotonic() + TASK_TIMEOUT_S
        while len(answers) < len(self._pipes):
            for number in self._ready([n for n in range(len(self._pipes)) if n not in answers], deadline_s):
                answers[number] = self._answer(number)
        failures = [answer for answer in answers.values() if isinstance(answer, CkptStoreError)]
        if failures:
            # Ranks whose barrier broke only say so; the one that broke it knows why.
            raise next((error for error in failures if "BrokenBarrier" not in error.why), failures[0])
        return [answers[number] for number in range(len(self._pipes))]

    def _ready(self, asked: Sequence[int], deadline_s: float) -> list[int]:
        ready = wait([self._pipes[number][0] for number in asked], timeout=max(0.0, deadline_s - time.monotonic()))
        if not ready:
            raise CkptStoreError(f"ranks {list(asked)} gave no answer within {TASK_TIMEOUT_S:g} s", operation="bench")
        return [number for number in asked if self._pipes[number][0] in ready]

    def _answer(self, number: int) -> Any:
        """What the rank gave, or its error."""
        try:
            _, value = self._pipes[number][0].recv()
        except (EOFError, ConnectionResetError):
            self._barrier.abort()
            self._processes[number].join(END_TIMEOUT_S)
            why = f"its process ended with {self._processes[number].exitcode}"
            return CkptStoreError(why, operation="bench", subject=f"rank {number}")
        return value

    def _end(self) -> None:
        self._barrier.abort()
        for ours, _ in self._pipes:
            with contextlib.suppress(OSError):
                ours.send(None)
        deadline_s = time.monotonic() + END_TIMEOUT_S
        for process in self._processes:
            if process.pid is None:
                continue
            process.join(max(0.0, deadline_s - time.monotonic()))
            if process.is_alive():
                process.kill()
            process.join(END_TIMEOUT_S)
