"""The way of drained bytes into one tier: when may the next block go, and is it still wanted?

A block passes when the machine can spare it (`QuietBudget`, shared by all lanes of the node) or when the tier's deadline needs it to go
now (`deadline.py`), whichever comes first; and never faster than the tier's bandwidth limit. What somebody waits for (a recall, a
repair on demand) is not held back for training, only by the limit.

A movement that is not wanted any more (its object was removed, the daemon stops) is called off: it ends at its next block with
`CalledOff`, and the tier leaves nothing of it. Without that, a slow drain would hold up the deletions of its tier, and the stop.
Thread-safe: a tier's threads ask for blocks at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ckptstore.errors import CkptStoreError
from ckptstore_server.deadline import Plan
from ckptstore_server.priority import yield_to_others
from ckptstore_server.quiet import SHORTEST_REST_S, QuietBudget
from ckptstore_server.rate_meter import RateMeter
from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.paced import Pace

#: The longest rest without another look at what is allowed, in seconds.
LONGEST_REST_S = 0.25
#: More CPU time than this since a thread's last block was spent on something else, in seconds.
LARGEST_CHARGE_S = 0.5


class CalledOff(CkptStoreError):
    """The movement is not wanted any more."""


class _Due:
    """Bytes that a deadline lets through: what its pace allows and nothing took yet, one burst at most."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at_s = clock()
        self._bytes = 0.0
        self._pace_bytes_s = 0.0

    def set_pace(self, pace_bytes_s: float) -> None:
        self._settle()
        self._pace_bytes_s = pace_bytes_s

    def wait_s(self, size_bytes: int) -> float:
        self._settle()
        missing = size_bytes - self._bytes
        if missing <= 0 or self._pace_bytes_s == float("inf"):
            return 0.0
        return missing / self._pace_bytes_s if self._pace_bytes_s else float("inf")

    def took(self, size_bytes: int) -> None:
        self._bytes = max(-float(BLOCK_BYTES), self._bytes - size_bytes)

    def _settle(self) -> None:
        now_s = self._clock()
        if self._pace_bytes_s != float("inf"):
            earned = (now_s - self._at_s) * self._pace_bytes_s
            self._bytes = min(max(2.0 * BLOCK_BYTES, self._pace_bytes_s), self._bytes + earned)
        self._at_s = now_s


class Lane:
    """One per tier. `nice` is for the threads that move blocks quietly."""

    def __init__(
        self,
        quiet: QuietBudget,
        *,
        limit_bytes_s: int | None = None,
        nice: int = 0,
        on_use: Callable[[float, float], None] = lambda at_s, total_s: None,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
        rest: Callable[[threading.Condition, float], object] = threading.Condition.wait,
    ) -> None:
        self.limit_bytes_s = limit_bytes_s
        self.plan = Plan()
        self.passed = RateMeter(clock=clock)
        self._quiet = quiet
        self._pace = Pace(limit_bytes_s, clock=clock) if limit_bytes_s else None
        self._due = _Due(clock)
        self._nice = nice
        self._on_use = on_use
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._rest = rest
        self._changed = threading.Condition()
        self._moving: dict[str, Movement] = {}
        self._mine = threading.local()
        self._closed = False

    @contextmanager
    def moving(self, object_id: str, size_bytes: int, *, quietly: bool) -> Iterator[Movement]:
        """A movement of one object, as the gate of its blocks."""
        movement = Movement(self, quietly=quietly, is_small=size_bytes <= BLOCK_BYTES)
        with self._changed:
            movement.called_off = self._closed
            self._moving[object_id] = movement
        self._mine.booked_s = self._cpu_clock()  # what this thread did before was not for this object
        try:
            yield movement
        finally:
            if quietly:
                self._book()
            with self._changed:
                del self._moving[object_id]

    def follow(self, plan: Plan) -> None:
        """Heed what the deadline asks for from now on."""
        with self._changed:
            self.plan = plan
            self._due.set_pace(plan.pace_bytes_s)
            self._changed.notify_all()

    def moved_bytes(self) -> int:
        """Of the objects that are under way."""
        with self._changed:
            return sum(movement.moved_bytes for movement in self._moving.values())

    def call_off(self, object_id: str) -> None:
        """End the object's movement, if there is one, at its next block."""
        with self._changed:
            if (movement := self._moving.get(object_id)) is not None:
                movement.called_off = True
                self._changed.notify_all()

    def close(self) -> None:
        """Call off all movements, and those to come."""
        with self._changed:
            self._closed = True
            for movement in self._moving.values():
                movement.called_off = True
            self._changed.notify_all()

    def pass_read(self, movement: Movement, size_bytes: int) -> None:
        """When the machine can spare it, or the deadline needs it."""
        if movement.quietly:
            self._yield_once()
            self._book()
        with self._changed:
            while movement.quietly and not movement.called_off:
                rest_s = min(self._quiet.wait_s(small=movement.is_small), self._due.wait_s(size_bytes))
                if rest_s < SHORTEST_REST_S:
                    break
                self._rest(self._changed, min(rest_s, LONGEST_REST_S))
            _refuse_called_off(movement)
            movement.moved_bytes += size_bytes
            self._due.took(size_bytes)
        self.passed.add(size_bytes)

    def pass_write(self, movement: Movement, size_bytes: int) -> None:
        """When the tier's limit has room for it."""
        with self._changed:
            if self._pace is not None and not movement.called_off:
                turn_s = self._clock() + self._pace.reserve(size_bytes)
                while not movement.called_off and (rest_s := turn_s - self._clock()) > SHORTEST_REST_S:
                    self._rest(self._changed, rest_s)
            _refuse_called_off(movement)

    def _yield_once(self) -> None:
        if not getattr(self._mine, "yielded", False):
            self._mine.yielded = True
            yield_to_others(self._nice)

    def _book(self) -> None:
        """Charge this thread's CPU time since its last block."""
        now_s = self._cpu_clock()
        spent_s = min(LARGEST_CHARGE_S, now_s - getattr(self._mine, "booked_s", now_s))
        self._mine.booked_s = now_s
        if spent_s > 0:
            self._quiet.charge(spent_s)
            self._on_use(self._clock(), self._quiet.total_s)


class Movement:
    """One object on its way: a `Gate` for its blocks."""

    def __init__(self, lane: Lane, *, quietly: bool, is_small: bool) -> None:
        self._lane = lane
        self.quietly = quietly
        self.is_small = is_small
        self.called_off = False
        self.moved_bytes = 0

    def take(self, size_bytes: int) -> None:
        self._lane.pass_read(self, size_bytes)
        self._lane.pass_write(self, size_bytes)

    def read(self, size_bytes: int) -> None:
        self._lane.pass_read(self, size_bytes)

    def write(self, size_bytes: int) -> None:
        self._lane.pass_write(self, size_bytes)


def _refuse_called_off(movement: Movement) -> None:
    if movement.called_off:
        raise CalledOff("it is not wanted any more", operation="drain")
