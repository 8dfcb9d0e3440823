"""One client in a process of its own, so that its CPU seconds are its own, its threads and event loops included.

A worker is told what to do over a pipe, and answers with seconds and CPU seconds, or with why it could not. Its memory is touched right
before each turn, since pages that lay idle cost at the next touch on some machines; that is not timed.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ckptstore.errors import CkptStoreError
from ckptstore_bench.s3.clients import CLIENTS, Place
from ckptstore_tiers.checksums import BlockDigests

#: A turn that takes longer has stuck.
TURN_TIMEOUT_S = 900.0
Direction = Literal["get", "put"]
DIRECTIONS: tuple[Direction, ...] = ("get", "put")
ENDED = "its process ended"


@dataclass(frozen=True)
class Turn:
    seconds: float
    cpu_s: float


class Worker:
    """A context manager. `why_not` says what a client failed at: it takes no more turns in that direction."""

    def __init__(self, client: str, place: Place, size_bytes: int) -> None:
        self.client = client
        self.why_not: dict[Direction, str] = {}
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, client, place, size_bytes), daemon=True)
        self._theirs = theirs

    def __enter__(self) -> Worker:
        self._process.start()
        self._theirs.close()
        if isinstance(found := self._receive(), str):
            self.why_not = dict.fromkeys(DIRECTIONS, found)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def turn(self, direction: Direction, name: str, file: Path, root: str) -> Turn | None:
        """Move the object once; None when this client cannot. What was got is compared with `root`, untimed."""
        if direction in self.why_not:
            return None
        try:
            self._pipe.send((direction, name, str(file), root))
        except OSError:
            found: Turn | str | None = ENDED
        else:
            found = self._receive()
        if isinstance(found, str):
            self.why_not[direction] = found
            return None
        return found

    def _receive(self) -> Turn | str | None:
        """What the process answers, or why it cannot."""
        try:
            if not self._pipe.poll(TURN_TIMEOUT_S):
                self._process.kill()
                return f"nothing for {TURN_TIMEOUT_S:g} s"
            found: Turn | str | None = self._pipe.recv()
        except (EOFError, OSError):
            return ENDED
        return found


def _serve(pipe: Connection, client: str, place: Place, size_bytes: int) -> None:
    """The top of the worker's process."""
    try:
        moving = CLIENTS[client][0](place)
        buffer = memoryview(mmap.mmap(-1, size_bytes))
    except Exception as error:  # noqa: BLE001 - whatever a foreign library raises says why it cannot take part
        pipe.send(_said(error))
        return
    pipe.send(None)
    with contextlib.suppress(EOFError):
        while True:
            direction, name, file, root = pipe.recv()
            try:
                turn: Turn | str = _one(moving, direction, name, Path(file), buffer, root)
            except Exception as error:  # noqa: BLE001 - the same
                turn = _said(error)
            pipe.send(turn)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _one(moving: Any, direction: Direction, name: str, file: Path, buffer: memoryview, root: str) -> Turn:
    if direction == "get":
        buffer[:] = bytes(len(buffer))
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    if direction == "get":
        moving.get(name, buffer)
    else:
        moving.put(name, file)
    turn = Turn(time.perf_counter() - began_s, time.process_time() - began_cpu_s)
    if direction == "get" and BlockDigests.of(buffer).root != root:
        raise CkptStoreError("what it got is not what was put", operation="bench", subject=name)
    return turn
