"""Are training's steps longer while drains run? The one measure that counts whatever the two contend for.

A trainer on this node tells, with each save, when its last optimizer steps ended (CLOCK_MONOTONIC, which all processes of a machine
share). A step is compared by how much CPU time drains used during it: the median of those with next to none is what a step takes, the
median of the others what it takes beside drains. Quiet medians are remembered per session, since most saves are followed by a drain.
A step beside which a save was copied or stored counts for neither: that is another burden, and none that quieter drains would ease.
Used from the event loop only, but for `note_use`.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

#: Steps that a median needs before it says anything.
ENOUGH_STEPS = 5
#: CPUs that drains may use in a step which still counts as undisturbed, and from which on it counts as disturbed.
UNDISTURBED_CPUS, DISTURBED_CPUS = 0.002, 0.01
#: Uses that are remembered, and how far apart, in seconds: together some three minutes of draining.
REMEMBERED_USES, GRAIN_S = 8192, 0.02
REMEMBERED_SESSIONS = 256
#: Of the saves that are over.
REMEMBERED_SAVES = 256


@dataclass(frozen=True)
class Finding:
    """Steps were longer by the fraction `slowdown` while drains used so many CPUs."""

    used_cpus: float
    slowdown: float


class StepTimes:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._saving: dict[object, float] = {}  # since when
        self._saved: deque[tuple[float, float]] = deque(maxlen=REMEMBERED_SAVES)  # from, until
        self._uses: deque[tuple[float, float]] = deque([(0.0, 0.0)], maxlen=REMEMBERED_USES)  # (time, CPU seconds in all until then)
        self._undisturbed_s: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def note_use(self, at_s: float, total_s: float) -> None:
        """Drains have used `total_s` CPU seconds in all until now. Any thread may say so."""
        with self._lock:
            if at_s - self._uses[-1][0] < GRAIN_S:
                at_s, _ = self._uses.pop()
            self._uses.append((at_s, total_s))

    @contextmanager
    def saving(self, since_s: float) -> Iterator[None]:
        """A save that is copied since then, and in the first durable tier at the end of this block."""
        save = object()
        self._saving[save] = since_s
        try:
            yield
        finally:
            self._saved.append((self._saving.pop(save), self._clock()))

    def heard(self, session: str, ends_s: Sequence[float]) -> Finding | None:
        """What the ends of a session's last steps say; None where they say nothing."""
        steps = self._steps(ends_s)
        undisturbed = [duration_s for duration_s, cpus in steps if cpus < UNDISTURBED_CPUS]
        disturbed = [(duration_s, cpus) for duration_s, cpus in steps if cpus >= DISTURBED_CPUS]
        if len(undisturbed) >= ENOUGH_STEPS:
            self._undisturbed_s[session] = median(undisturbed)
            self._undisturbed_s.move_to_end(session)
            while len(self._undisturbed_s) > REMEMBERED_SESSIONS:
                self._undisturbed_s.popitem(last=False)
        alone_s = self._undisturbed_s.get(session)
        if alone_s is None or len(disturbed) < ENOUGH_STEPS:
            return None
        beside_s = median(duration_s for duration_s, _ in disturbed)
        return Finding(sum(cpus for _, cpus in disturbed) / len(disturbed), max(0.0, beside_s / alone_s - 1.0))

    def _steps(self, ends_s: Sequence[float]) -> list[tuple[float, float]]:
        """Duration, and CPUs that drains used meanwhile, of each step between two ends beside which nothing was saved."""
        if len(ends_s) < 2:
            return []
        known = (*self._saved, *((since_s, float("inf")) for since_s in self._saving.values()))
        saves = [(since_s, until_s) for since_s, until_s in known if since_s < ends_s[-1] and ends_s[0] < until_s]
        with self._lock:
            times, totals = zip(*self._uses, strict=True)
        used_s = [totals[max(0, bisect_left(times, end_s) - 1)] for end_s in ends_s]
        spans = zip(ends_s, ends_s[1:], used_s, used_s[1:], strict=False)
        return [
            (end - begin, (used - before) / (end - begin))
            for begin, end, before, used in spans
            if end > begin and not any(since_s < end and begin < until_s for since_s, until_s in saves)
        ]
