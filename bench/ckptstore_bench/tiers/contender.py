"""What is measured of a place that holds bytes, and of its device: the same acts, so that the two can be compared.

A contender is a tier, or the plain calls that its device would be used by without ckptstore. Every act times only itself; what it needs
(files to read, a cold cache) is made before the clock starts, and what it wrote is gone when it returns.
"""

from __future__ import annotations

import itertools
import mmap
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

#: What a random read and a small durable write are of.
SMALL_BYTES = 4096


@dataclass(frozen=True, order=True)
class Setting:
    """How bytes are moved: so many at a time, by so many threads, past the page cache or through it (None: there is none)."""

    block_bytes: int
    threads: int
    direct: bool | None = None


@dataclass(frozen=True)
class Timing:
    """One act: so many bytes in so many seconds, and how long each single call took, where there were several."""

    seconds: float
    size_bytes: int
    latencies_s: tuple[float, ...] = ()

    @property
    def bytes_per_s(self) -> float:
        return self.size_bytes / self.seconds


class Contender(Protocol):
    """One thread drives it. Foreign errors come as leaves of `ckptstore.errors`."""

    def can(self, setting: Setting) -> bool:
        """Whether it can be told to write so."""
        ...

    def write(self, data: memoryview, setting: Setting) -> Timing:
        """All of `data` (page-aligned), as durable as the place makes it."""
        ...

    def prepare(self, data: memoryview) -> None:
        """Store what `read` and `random_reads` read."""
        ...

    def read(self, setting: Setting) -> Timing:
        """All of what was prepared, cold where the place has a cache of its own."""
        ...

    def random_reads(self, offsets: Sequence[int], threads: int, direct: bool | None) -> Timing:
        """SMALL_BYTES at each offset of what was prepared."""
        ...

    def small_writes(self, count: int) -> Timing:
        """`count` new durable things of SMALL_BYTES, one after the other."""
        ...

    def close(self) -> None:
        """Remove what was prepared."""
        ...


def aligned(size_bytes: int) -> memoryview:
    """Page-aligned memory, touched."""
    memory = mmap.mmap(-1, size_bytes)
    view = memoryview(memory)
    for start in range(0, size_bytes, mmap.PAGESIZE):
        view[start] = 0
    return view


def in_threads(threads: int, pieces: Sequence[tuple[int, int]], act: Callable[[int, int, memoryview], None]) -> Timing:
    """`act(start, stop, buffer)` for every piece, by threads that take the next one; each has a buffer of the longest piece."""
    longest = max(stop - start for start, stop in pieces)
    remaining = itertools.count()
    buffers = [aligned(longest) for _ in range(threads)]

    def work(buffer: memoryview) -> list[float]:
        latencies_s = []
        while (number := next(remaining)) < len(pieces):
            start, stop = pieces[number]
            began_s = time.perf_counter()
            act(start, stop, buffer[: stop - start])
            latencies_s.append(time.perf_counter() - began_s)
        return latencies_s

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(lambda _: None, range(threads)))  # threads are started before the clock is
        began_s = time.perf_counter()
        found = list(executor.map(work, buffers))
        seconds = time.perf_counter() - began_s
    return Timing(seconds, sum(stop - start for start, stop in pieces), tuple(itertools.chain(*found)))


def pieces_of(size_bytes: int, block_bytes: int) -> list[tuple[int, int]]:
    """`[(start, stop), …]`, the last one shorter where it must be."""
    return [(start, min(size_bytes, start + block_bytes)) for start in range(0, size_bytes, block_bytes)]
