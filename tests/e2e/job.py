"""A distributed job of real processes, for tests: `rank_program.py` once per rank, each saying in JSON lines what happened.

They are forked from a process that has imported torch (`tests.forking`).
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ckptstore_bench.ports import free_port
from tests.forking import Program

PROGRAM = Path(__file__).with_name("rank_program.py")
TIMEOUT_S = 120.0


class Job:
    """`arguments[r]` are rank r's, after HOME PATH VALUE. Leaving the `with` block kills what still runs."""

    #: what each rank runs
    program = PROGRAM

    def __init__(
        self, home: Path, path: str, value: int | str, arguments: Sequence[Sequence[str]], *, homes: Sequence[Path] | None = None
    ) -> None:
        port = free_port()
        self.world_size = len(arguments)
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.seen: list[dict[str, Any]] = []
        self.processes = []
        for rank, more in enumerate(arguments):
            environment = os.environ | {
                "RANK": str(rank),
                "WORLD_SIZE": str(self.world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
            }
            place = homes[rank] if homes else home
            process = Program(self.program, [place, path, str(value), *more], environment)
            threading.Thread(target=self._read, args=(process,), daemon=True).start()
            self.processes.append(process)

    def _read(self, process: Program) -> None:
        for line in process.stdout:
            if line.startswith("{"):
                self._events.put(json.loads(line))

    def expect(self, event: str, ranks: Sequence[int]) -> list[dict[str, Any]]:
        """Wait until each of `ranks` has said `event`; what they said, by rank."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            found = {line["rank"]: line for line in self.seen if line["event"] == event}
            if all(rank in found for rank in ranks):
                return [found[rank] for rank in ranks]
            try:
                self.seen.append(self._events.get(timeout=0.2))
            except queue.Empty:
                ended = all(self.processes[rank].poll() is not None for rank in ranks)
                if time.monotonic() < deadline and not ended:
                    continue
                raise AssertionError(f"ranks {ranks} never said {event!r}; they said {self.seen}; {self._complaints()}") from None

    def _complaints(self) -> str:
        for process in self.processes:
            process.kill()
        return "\n".join(process.stderr.read()[-1500:] for process in self.processes)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
