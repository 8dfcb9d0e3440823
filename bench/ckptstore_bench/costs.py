"""What does a process cost: CPU seconds and memory, its children's included?

CPU time is read from the process's CPU clock, in nanoseconds (clock_getcpuclockid(3): the clock of process p is (~p << 3) | 2). Memory is
the proportional set size (Pss) of anonymous and shared pages from /proc/<pid>/smaps_rollup, so that a segment that a daemon and a client
both map counts once. Reading it walks page tables under the process's lock: it is sampled in a turn of its own, which is not timed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import psutil

SAMPLE_EVERY_S = 0.02
_COUNTED = ("Pss_Anon", "Pss_Shmem")


def tree(pid: int) -> list[int]:
    """The pids of the process and its descendants, as they are now."""
    return [process.pid for process in processes(pid)]


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds that these have used since they began."""
    used = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            used += time.clock_gettime((~pid << 3) | 2)
    return used


def memory_bytes(pids: Sequence[int]) -> int:
    held = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()[1:]
            fields = dict(line.split(":", 1) for line in lines)
            held += sum(int(fields[name].split()[0]) * 1024 for name in _COUNTED if name in fields)
    return held


class PeakMemory:
    """The most that process trees hold at once while the `with` block runs, sampled by a thread."""

    def __init__(self, roots: Sequence[int]) -> None:
        self._roots = roots
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
        self.peak_bytes = 0

    def _sample(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, memory_bytes([pid for root in self._roots for pid in tree(root)]))
            if self._over.wait(SAMPLE_EVERY_S):
                return

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()


def processes(pid: int) -> list[psutil.Process]:
    """The process and its descendants, as handles that know when a pid has become another process's."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def kill(found: Sequence[psutil.Process]) -> None:
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
