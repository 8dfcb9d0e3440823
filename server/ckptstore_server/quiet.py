"""How much of the machine may drains use now? A budget of CPU time, shared by all drains of the node.

The signal is CPU time, of ours and of others, since it is what every drain costs and what the kernel counts exactly; memory bandwidth,
for which there is no counter without privileges, goes with it (bytes are moved by the CPU), and what is left shows in the step times.
Twice a second, while something drains:

1. Nobody else is busy: drains may use every CPU. Others use some: drains may use what these leave over, but for half of one.
2. Others wait for a CPU, or anybody for memory, or a job for its disk (PSI): training is in need, and drains may use `busy_share` of
   the CPUs (0.02: two CPUs give 4 % of one). What is measured at that moment includes the drain itself, so 2 comes before 1.
3. Where the trainer tells its step times and they are longer while drains run, drains may use so much less that the difference falls
   to a twentieth; see `StepTimes`. That holds while training goes on: not while others use less than half of the CPUs that they used when
   it was told, as at the end of a job, whose last checkpoint would go on crawling.

`charge` books what a drain used after the fact; `wait_s` says how long it must rest. A short burst is free, so that small checkpoints
pass at once. Thread-safe. An idle daemon reads nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from statistics import fmean
from typing import Protocol

from ckptstore_server.pressure import Pressure, Reading

#: Seconds between two looks at the machine; the first comes sooner, for until then nothing is known.
LOOK_S, FIRST_LOOK_S = 0.5, 0.1
#: Looks whose mean is what others use: two minutes of draining.
SEEN_LOOKS = 240
#: Readings older than this tell of another time.
STALE_S = 5.0
#: CPU seconds that are free: what is allowed for half a second, or so much. And for small objects, each of which costs a few
#: milliseconds however small it is: a hundred of them, for a run of small checkpoints must not wait for each.
LEAST_BURST_S, BURST_OF_S, SMALL_BURST_S = 0.02, 0.5, 0.2
#: CPUs that are left over beside what others use and drains: gaps between their steps are no place that a drain would hit.
SPARE_CPUS = 0.5
#: Fractions of the time in which somebody waited, above which training is taken to be in need.
CPU_STALL, MEMORY_STALL, JOB_STALL = 0.10, 0.05, 0.20
#: More than this is not owed: what a deadline hurried is not to be paid for by what comes after it.
LARGEST_DEBT_S = 3.0
#: A rest that no clock could tell from none.
SHORTEST_REST_S = 1e-4
#: Others that use less than this fraction of the CPUs are no training: what waits for a CPU are the drains themselves.
IDLE_OTHERS = 0.10
#: The slow-down of training's steps that is aimed at where it can be measured.
SLOWDOWN_GOAL = 0.05


class Counters(Protocol):
    @property
    def cpus(self) -> int: ...

    def read(self) -> Reading: ...


def allowed_cpus(pressure: Pressure, cpus: int, busy_share: float) -> float:
    """CPUs that drains may use, by what others need."""
    least = busy_share * cpus
    if pressure.memory > MEMORY_STALL or pressure.jobs > JOB_STALL:
        return least
    if pressure.others_cpus <= IDLE_OTHERS * cpus:
        return float(cpus)
    if pressure.cpu > CPU_STALL:
        return least
    return max(least, cpus - pressure.others_cpus - SPARE_CPUS)


def burst_s(allowed: float, *, small: bool = False) -> float:
    """CPU seconds that pass at once where so many CPUs are allowed."""
    return max(SMALL_BURST_S if small else LEAST_BURST_S, BURST_OF_S * allowed)


class QuietBudget:
    """CPU seconds that drains may still use."""

    def __init__(self, counters: Counters, busy_share: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._counters = counters
        self._busy_share = busy_share
        self._clock = clock
        self._lock = threading.Lock()
        self._debt_s = 0.0
        self._paid_at_s = clock()
        self._allowed_cpus = busy_share * counters.cpus
        self._reading: Reading | None = None
        self._looked_twice = False
        self._most_cpus = float(counters.cpus)  # by step times
        self._others_cpus = 0.0  # as of the last look
        self._seen_cpus: deque[float] = deque(maxlen=SEEN_LOOKS)  # of others, since step times were told last
        self._training_cpus = 0.0  # of others, while steps were told
        self._total_s = 0.0
        self.suspended = False  # something is more urgent than quiet: see `Upkeep`

    @property
    def allowed_cpus(self) -> float:
        """As of the last look."""
        if self.suspended:
            return float(self._counters.cpus)
        trains = self._others_cpus >= self._training_cpus / 2
        return min(self._allowed_cpus, self._most_cpus) if trains else self._allowed_cpus

    @property
    def total_s(self) -> float:
        """CPU seconds that drains have used since the start."""
        return self._total_s

    def charge(self, cpu_s: float) -> None:
        with self._lock:
            self._debt_s = min(LARGEST_DEBT_S, self._debt_s + cpu_s)
            self._total_s += cpu_s

    def wait_s(self, *, small: bool = False) -> float:
        """How long drains must rest now, by what is allowed now; ask again then, or sooner. `small`: before a small object."""
        with self._lock:
            self._look()
            now_s = self._clock()
            allowed = self.allowed_cpus
            self._debt_s = max(0.0, self._debt_s - (now_s - self._paid_at_s) * allowed)
            self._paid_at_s = now_s
            rest_s = (self._debt_s - burst_s(allowed, small=small)) / max(allowed, 1e-6)
            return 0.0 if self.suspended or rest_s < SHORTEST_REST_S else rest_s

    def aim(self, used_cpus: float, slowdown: float) -> None:
        """Training told that its steps took longer by `slowdown` while drains used so many CPUs."""
        with self._lock:
            if self._seen_cpus:
                self._training_cpus = fmean(self._seen_cpus)
                self._seen_cpus.clear()
            least, cpus = self._busy_share * self._counters.cpus / 4, float(self._counters.cpus)
            if slowdown > SLOWDOWN_GOAL:
                self._most_cpus = max(least, used_cpus * SLOWDOWN_GOAL / slowdown)
            elif slowdown < SLOWDOWN_GOAL / 2:
                self._most_cpus = min(cpus, 2 * self._most_cpus)

    def _look(self) -> None:
        now_s, before = self._clock(), self._reading
        if before is None or now_s - before.at_s > STALE_S:
            self._reading, self._looked_twice = self._counters.read(), False
            self._allowed_cpus = self._busy_share * self._counters.cpus
        elif now_s - before.at_s >= (LOOK_S if self._looked_twice else FIRST_LOOK_S):
            self._reading, self._looked_twice = self._counters.read(), True
            pressure = Pressure.between(before, self._reading)
            self._allowed_cpus = allowed_cpus(pressure, self._counters.cpus, self._busy_share)
            self._others_cpus = pressure.others_cpus
            self._seen_cpus.append(pressure.others_cpus)
