"""Who else needs this machine now? CPU time that others use, and how long they stood waiting, read from the kernel's counters.

Three sources, none of which needs privileges:
- /proc/stat, for the CPUs that this process may use, less this process's own time: what others use.
- /proc/pressure/{cpu,memory}: how long some task stood waiting (PSI). I/O is left out there, since what is counted is the drain's own
  waiting for the disk above all.
- {cpu,memory,io}.pressure of the jobs' own cgroups (version 2), where they are not the daemon's: what training itself waited for, I/O too.

A `Reading` holds counters; two of them tell of the time between. A source that is missing counts as no pressure. Stateless.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ckptstore_tiers.memory_limits import cgroup_paths

_JOB_FILES = ("cpu.pressure", "memory.pressure", "io.pressure")
_CGROUP_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


@dataclass(frozen=True)
class Reading:
    """Counters, all in seconds since some beginning."""

    at_s: float
    others_cpu_s: float
    cpu_stall_s: float
    memory_stall_s: float
    job_stalls_s: dict[str, float] = field(default_factory=dict)  # by file: a job that ended takes its own with it


@dataclass(frozen=True)
class Pressure:
    """Of the time between two readings: CPUs that others used, and the fractions in which some task waited."""

    others_cpus: float
    cpu: float
    memory: float
    jobs: float

    @classmethod
    def between(cls, earlier: Reading, later: Reading) -> Pressure:
        span_s = max(1e-6, later.at_s - earlier.at_s)
        waited = [stall_s - earlier.job_stalls_s[file] for file, stall_s in later.job_stalls_s.items() if file in earlier.job_stalls_s]
        return cls(
            max(0.0, later.others_cpu_s - earlier.others_cpu_s) / span_s,
            max(0.0, later.cpu_stall_s - earlier.cpu_stall_s) / span_s,
            max(0.0, later.memory_stall_s - earlier.memory_stall_s) / span_s,
            max(0.0, *waited, 0.0) / span_s,
        )


class Gauge:
    """Reads the counters. Thread-safe: it keeps nothing but where to look."""

    def __init__(
        self,
        *,
        proc: Path = Path("/proc"),
        cpus: Collection[int] | None = None,
        clock: Callable[[], float] = time.monotonic,
        own_cpu_s: Callable[[], float] = time.process_time,
    ) -> None:
        self._proc = proc
        self._names = {f"cpu{number}" for number in (os.sched_getaffinity(0) if cpus is None else cpus)}
        self._clock = clock
        self._own_cpu_s = own_cpu_s
        self.job_folders: frozenset[Path] = frozenset()  # replaced as a whole by whoever knows who trains

    @property
    def cpus(self) -> int:
        return len(self._names)

    def read(self) -> Reading:
        return Reading(
            self._clock(),
            self._busy_s() - self._own_cpu_s(),
            stall_s(self._proc / "pressure/cpu"),
            stall_s(self._proc / "pressure/memory"),
            {str(folder / name): stall_s(folder / name) for folder in self.job_folders for name in _JOB_FILES},
        )

    def _busy_s(self) -> float:
        """Time in which our CPUs did something; what a hypervisor took away was not free either."""
        busy = 0
        with suppress(OSError):
            for line in (self._proc / "stat").read_text("ascii").splitlines():
                name, *fields = line.split()
                if name in self._names:
                    user, nice, system, _idle, _iowait, *others = map(int, fields[:8])
                    busy += user + nice + system + sum(others)
        return busy / os.sysconf("SC_CLK_TCK")


def stall_s(file: Path) -> float:
    """The counter of a PSI file's line `some`, in seconds; 0 where the kernel keeps none."""
    with suppress(OSError, ValueError):
        for line in file.read_text("ascii").splitlines():
            if line.startswith("some "):
                return int(line.rpartition("total=")[2]) / 1e6
    return 0.0


def job_folders(pids: Collection[int], *, proc: Path = Path("/proc"), roots: Collection[Path] = _CGROUP_ROOTS) -> frozenset[Path]:
    """The cgroup folders (version 2) of these processes that are not this process's own, and keep pressure."""
    folders = set()
    own = cgroup_paths(proc).get("", "/")
    for pid in pids:
        with suppress(OSError):
            path = cgroup_paths(proc, pid).get("", "/")
            if path != own:
                folders |= {folder for root in roots if (folder := root / path.strip("/")).joinpath(_JOB_FILES[0]).exists()}
    return frozenset(folders)
