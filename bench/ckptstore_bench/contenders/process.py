"""The parent's side of a contender: starts its process, gives it turns, meters them, and ends it.

Not thread-safe: one thread gives turns, and one contender at a time works. A contender that raises, dies or does not answer in time is out
for the rest of the run; `why` says why, and every later turn answers None.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ckptstore_bench import costs
from ckptstore_bench.contenders.catalogue import Contender
from ckptstore_bench.contenders.interface import Setup
from ckptstore_bench.contenders.worker import serve

#: Imported once, before any contender is forked: a second of every start. None of them starts a thread when it is imported.
PRELOADED = ["numpy", "torch", "ckptstore_bench.contenders.worker"]
START_TIMEOUT_S = 300.0
TURN_TIMEOUT_S = 900.0
END_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Turn:
    """What a turn gave, and what it cost its process tree in CPU seconds."""

    value: Any
    cpu_s: float


class ContenderProcess:
    def __init__(self, contender: Contender, setup: Setup, *, why: str | None = None) -> None:
        """With a `why` it is out from the beginning, and never started."""
        self.contender = contender
        self.setup = setup
        self.why = why
        #: What it held when it had been made: the interpreter, its libraries, its share of the state.
        self.baseline_bytes = 0
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._pipe, theirs = context.Pipe()
        # Not daemonic: such a process could have no children, and dcp-process has one.
        self._process = context.Process(target=serve, args=(theirs, contender, setup), name=f"bench-{contender.name}", daemon=False)
        self._theirs = theirs

    def launch(self) -> None:
        """Begin to import and make it; others may be launched meanwhile."""
        if self.why is None:
            self.setup.folder.mkdir(parents=True, exist_ok=True)
            self._process.start()
            self._theirs.close()

    def wait_ready(self) -> None:
        """Until it has been made; a peer that cannot says why."""
        if self.why is None:
            self._answer(START_TIMEOUT_S)
            self.baseline_bytes = costs.memory_bytes(self.pids)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def pids(self) -> list[int]:
        return costs.tree(self.pid) if self._process.is_alive() else []

    def turn(self, method: str, *arguments: Any) -> Turn | None:
        """Have it do `method(*arguments)` and wait for the end. None if it is out."""
        if self.why is not None:
            return None
        try:
            self._pipe.send((method, arguments))
        except BrokenPipeError:
            self._out(f"its process ended ({self._exit()})")
            return None
        answer = self._answer(TURN_TIMEOUT_S)
        return None if self.why is not None else Turn(*answer)

    def _answer(self, timeout_s: float) -> Any:
        try:
            if not self._pipe.poll(timeout_s):
                self._out(f"no answer within {timeout_s:g} s")
                return None
            outcome, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(END_TIMEOUT_S)
            self._out(f"its process ended ({self._exit()})")
            return None
        if outcome == "failed":
            self._out(value)
        return value

    def _exit(self) -> str:
        code = self._process.exitcode
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"

    def _out(self, why: str) -> None:
        self.why = why
        self.end()

    def end(self) -> None:
        """Ask it to close what it has; after some seconds end it and its children."""
        if self._process.pid is None:
            return
        family = costs.processes(self.pid)
        if self._process.is_alive():
            with contextlib.suppress(OSError):
                self._pipe.send(None)
            self._process.join(END_TIMEOUT_S if self.why is None else 1.0)
        costs.kill(family)
        self._process.join(END_TIMEOUT_S)

    def __enter__(self) -> ContenderProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and self.why is None:
            self.why = "the run was interrupted"  # no patience for an orderly end
        self.end()
