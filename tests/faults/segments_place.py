"""Pools of segments that a test makes, on a host whose room it sets; what the kernel says of their pages."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptstore_tiers.memory import Segment, SegmentPool
from ckptstore_tiers.memory_limits import HostMemory, Room
from ckptstore_tiers.sources import address_of

MIB = 1 << 20

class PlentyOfRoom(HostMemory):
    """A host whose room the test sets."""

    def __init__(self, size_bytes: int = 1 << 40) -> None:
        self.size_bytes = size_bytes

    def room(self) -> Room:
        return Room(self.size_bytes, "the test's bound")


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


Make = Callable[..., SegmentPool]


@pytest.fixture
def make() -> Iterator[Make]:
    pools: list[SegmentPool] = []

    def make(limit_bytes: int | None = 64 * MIB, slots: int = 2, **options: object) -> SegmentPool:
        options.setdefault("host", PlentyOfRoom())
        pools.append(SegmentPool(limit_bytes, slots, **options))  # type: ignore[arg-type]
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def save(pool: SegmentPool, owner: str, object_id: str, size_bytes: int = MIB) -> Segment:
    """What a whole save leaves: a replica."""
    segment = pool.acquire(owner, size_bytes, timeout_s=0)
    pool.hold(segment.segment_id, segment.generation, owner=owner)
    pool.keep_as_replica(segment, object_id, size_bytes)
    return segment


def settle(pool: SegmentPool) -> None:
    """Everything that the pool does behind its callers has been done."""
    for threads in (pool._prefaulter, pool._spare_maker):
        threads.submit(int).result(60)  # what was submitted before has begun
    for slot in list(pool._slots.values()):
        assert slot.prefaulted.wait(60)
    pool._spare_maker.submit(int).result(60)


def resident_bytes(segment: Segment) -> int:
    return os.fstat(segment.fd).st_blocks * 512


def mappings() -> Iterator[tuple[int, int, dict[str, int]]]:
    """(start, end, sizes in bytes by their names in smaps) of each mapping of this process."""
    low, high, sizes = 0, 0, dict[str, int]()
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            yield low, high, sizes
            low, high, sizes = int(match[1], 16), int(match[2], 16), {}
        elif match := re.match(r"(\w+): +(\d+) kB", line):
            sizes[match[1]] = int(match[2]) * 1024
    yield low, high, sizes


def mapped_bytes(view: memoryview, what: str = "Rss") -> int:
    """Resident bytes of the mapping that `view` lies in, as this process's page table has them; 0 if nothing is mapped there."""
    return sum(sizes[what] for low, high, sizes in mappings() if low <= address_of(view) < high)
