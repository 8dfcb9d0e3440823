"""How fast is memory: plain copies between warm buffers, and copies into and out of a segment of ckptstore's pool?

The segment is warm too, as it is from the second save on; what the first touch costs is measured apart (`fresh_segment`), with huge pages
and without. Nothing here is durable, so there are no small writes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ckptstore_bench.tiers.contender import SMALL_BYTES, Setting, Timing, aligned, in_threads, pieces_of
from ckptstore_tiers.memory import SegmentPool
from ckptstore_tiers.private_copy import copy_bytes

OWNER = "bench"
#: Room for what the pool adds to a segment.
SLACK_BYTES = 16 << 20
TIMEOUT_S = 60.0


class _Copies:
    """Copies into and out of one warm piece of memory; `sink`, as large, is where reads go."""

    def __init__(self, memory: memoryview, sink: memoryview) -> None:
        self._memory = memory
        self._sink = sink

    def can(self, setting: Setting) -> bool:
        return True

    def write(self, data: memoryview, setting: Setting) -> Timing:
        pieces = pieces_of(len(data), setting.block_bytes)
        return in_threads(setting.threads, pieces, lambda start, stop, _: copy_bytes(data[start:stop], self._memory[start:stop]))

    def prepare(self, data: memoryview) -> None:
        copy_bytes(data, self._memory[: len(data)])

    def read(self, setting: Setting) -> Timing:
        pieces = pieces_of(len(self._memory), setting.block_bytes)
        return in_threads(setting.threads, pieces, lambda start, stop, _: copy_bytes(self._memory[start:stop], self._sink[start:stop]))

    def random_reads(self, offsets: Sequence[int], threads: int, direct: bool | None) -> Timing:
        pieces = [(offset, offset + SMALL_BYTES) for offset in offsets]
        return in_threads(threads, pieces, lambda start, stop, buffer: copy_bytes(self._memory[start:stop], buffer))

    def small_writes(self, count: int) -> Timing:
        raise NotImplementedError("memory holds nothing durably")

    def close(self) -> None:
        """The memory goes with this object."""


class MemoryDevice(_Copies):
    """Anonymous memory of this process."""

    def __init__(self, sink: memoryview) -> None:
        super().__init__(aligned(len(sink)), sink)


class SegmentContender(_Copies):
    """A segment of a pool of its own, as the daemon lends it."""

    def __init__(self, sink: memoryview, *, huge_pages: bool) -> None:
        size_bytes = len(sink)
        self._pool = SegmentPool(size_bytes + SLACK_BYTES, 1, huge_pages)
        segment = self._pool.acquire(OWNER, size_bytes, timeout_s=TIMEOUT_S)
        super().__init__(segment.view[:size_bytes], sink)
        copy_bytes(sink, self._memory)  # the first touch is not what is measured here

    def close(self) -> None:
        self._memory.release()
        self._pool.close()


def fresh_segment(data: memoryview, *, huge_pages: bool) -> Timing:
    """From asking for a segment that does not exist yet until all of `data` lies in it: what a first save pays."""
    pool = SegmentPool(len(data) + SLACK_BYTES, 1, huge_pages)
    try:
        began_s = time.perf_counter()
        view = pool.acquire(OWNER, len(data), timeout_s=TIMEOUT_S).view[: len(data)]
        copy_bytes(data, view)
        seconds = time.perf_counter() - began_s
        view.release()
    finally:
        pool.close()
    return Timing(seconds, len(data))
