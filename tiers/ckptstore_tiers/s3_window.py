"""How many parts and ranges may be on their way at once, and how large are they? As many as the endpoint turns into throughput.

One window for a tier: all objects that go up and down share its slots. It climbs: one more slot as long as the last one was worth at
least a quarter of its share of the throughput; a slot that only made all others slower is given back (with so many requests in flight
and no more bytes a second, each takes longer: latency needs no measure of its own), and the next try waits for a while. A server that
says 503 or SlowDown halves the window at once. Congestion control of the same shape: RFC 5681 (additive increase, multiplicative
decrease), and Vegas for the part that looks at throughput.

Parts are as large as one connection moves in about half a second, so that the cost of a request (0.7 ms of this processor where its code
is in the caches, three times that where bodies have driven it out, a round trip, a look-up in the server) disappears in it. Each slot gets
as many of them as any other, one if that is enough, so that none is left alone at the end; and all that are held in memory stay within a
bound. Measured against SeaweedFS, 512 MiB, eight slots: one range of 64 MiB each cost the client 0.17 CPU seconds a GB and the server
0.99, two of 32 MiB 0.24 and 1.14.

Thread-safe. `slot` blocks; nothing else does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ckptstore.errors import TierUnavailable
from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.transfer_figures import TransferFigures

#: One try of one transfer ends within minutes (its timeouts see to that); a slot that is not free by then never will be.
SLOT_TIMEOUT_S = 1800.0
#: A new slot stays if it brought at least this fraction of what the others bring on average.
WORTH = 0.25
#: Rounds until a slot that was not worth it is tried again.
PATIENCE_ROUNDS = 16
#: Throughput below this fraction of what it was: the endpoint, or the way to it, is worse than when the window grew.
COLLAPSE = 0.5
#: Refusals of requests that were under way together count once.
ONE_REFUSAL_S = 1.0
#: Smaller transfers take a slot and tell nothing of the endpoint's throughput.
TELLING_BYTES = 2 * BLOCK_BYTES
#: What a part or range should take on its connection, in seconds.
PART_S = 0.5


@dataclass(frozen=True)
class WindowBounds:
    """`start` slots at first, then between `least` and `most`; parts of `part_least` to `part_most` bytes."""

    least: int
    start: int
    most: int
    part_least: int
    part_most: int
    memory_bytes: int


class Transfer:
    """One part or range on its way; whoever moves its bytes says how many."""

    moved_bytes = 0


class TransferWindow:
    def __init__(self, tier: str, bounds: WindowBounds, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tier = tier
        self._bounds = bounds
        self._clock = clock
        self._free = threading.Condition()
        self._limit = bounds.start
        self._in_flight = 0
        self._refusals = 0
        self._refused_s = clock() - ONE_REFUSAL_S
        self._moved_bytes = 0
        self._rate = 0.0  # of one connection, bytes a second, smoothed
        self._patience = 0  # rounds until the next try to grow
        self._grew = False  # the round that runs is the first with one slot more
        self._settled_rate = 0.0  # of all of them, before that
        self._full = True  # as many were on their way all the time as were allowed
        self._begin_round()

    @property
    def figures(self) -> TransferFigures:
        with self._free:
            return TransferFigures(
                parallel=self._limit,
                in_flight=self._in_flight,
                part_bytes=self._part_bytes(1 << 62, self._bounds.part_most),
                refusals=self._refusals,
                moved_bytes=self._moved_bytes,
            )

    @contextmanager
    def slot(self) -> Iterator[Transfer]:
        """A place among those that are on their way, for a `with` block."""
        with self._free:
            if not self._free.wait_for(lambda: self._in_flight < self._limit, SLOT_TIMEOUT_S):
                raise TierUnavailable(
                    f"none of {self._limit} connections became free", operation="transfer", tier=self._tier
                )
            self._in_flight += 1
            self._full = self._full and self._in_flight >= self._limit - 1
        transfer, begun_s = Transfer(), self._clock()
        try:
            yield transfer
        finally:
            with self._free:
                self._in_flight -= 1
                self._count(transfer.moved_bytes, self._clock() - begun_s)
                self._free.notify()

    def refused(self) -> None:
        """The server said that it has too much to do."""
        with self._free:
            now_s = self._clock()
            self._refusals += 1
            if now_s - self._refused_s >= ONE_REFUSAL_S:
                self._refused_s = now_s
                self._limit = max(self._bounds.least, self._limit // 2)
                self._patience, self._grew, self._settled_rate = PATIENCE_ROUNDS // 4, False, 0.0
                self._begin_round()

    def part_bytes(self, size_bytes: int, *, held: bool) -> int:
        """How large the parts or ranges of so many bytes are, in whole blocks; `held`: they lie in memory of ours meanwhile."""
        with self._free:
            most = self._bounds.part_most
            if held:
                most = min(most, self._bounds.memory_bytes // self._limit)
            return self._part_bytes(size_bytes, most)

    def _part_bytes(self, size_bytes: int, most: int) -> int:
        wanted = max(self._bounds.part_least, min(int(self._rate * PART_S), most) // BLOCK_BYTES * BLOCK_BYTES)
        turns = -(-size_bytes // (self._limit * wanted))
        even = -(-size_bytes // max(1, self._limit * turns * BLOCK_BYTES)) * BLOCK_BYTES
        return max(self._bounds.part_least, even)

    def _begin_round(self) -> None:
        self._round_s = self._clock()
        self._round_bytes = self._round_count = 0
        self._full = True

    def _count(self, moved_bytes: int, took_s: float) -> None:
        self._moved_bytes += moved_bytes
        if moved_bytes < TELLING_BYTES:
            self._begin_round()
            return
        rate = moved_bytes / max(took_s, 1e-6)
        self._rate = rate if self._rate == 0 else 0.8 * self._rate + 0.2 * rate
        self._round_bytes += moved_bytes
        self._round_count += 1
        if self._round_count >= 2 * self._limit:
            if self._full:
                self._judge(self._round_bytes / max(self._clock() - self._round_s, 1e-6))
            self._begin_round()

    def _judge(self, rate: float) -> None:
        """A round with `rate` bytes a second has ended: one slot more, one less, or as it is."""
        if self._grew and rate < self._settled_rate * (1 + WORTH / self._limit):
            self._grew, self._patience = False, PATIENCE_ROUNDS
            self._limit = max(self._bounds.least, self._limit - 1)
            return
        if not self._grew and rate < COLLAPSE * self._settled_rate:
            self._limit, self._settled_rate, self._patience = max(self._bounds.least, self._limit - 1), rate, PATIENCE_ROUNDS // 4
            return
        self._settled_rate = rate
        self._grew = False
        if self._patience > 0:
            self._patience -= 1
        elif self._limit < self._bounds.most:
            self._limit += 1
            self._grew = True
            self._free.notify()
