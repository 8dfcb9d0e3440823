"""Fresh, page-aligned memory of this process alone, of huge pages where there are any.

Huge pages matter twice: first touches cost a fault each 2 MiB instead of each 4 KiB, and a transfer by O_DIRECT is one piece of memory
for the device instead of a thousand, which it would take as four requests. The memory goes with the last view of it.

Whoever fills fresh memory while a device works makes its pages beside that, and the device waits: 1 GiB by O_DIRECT, which took 495 ms
into memory that was there, took 557 to 1,608 ms into fresh memory, with up to 2.9 s of processor for what needs 0.1; copied from
the buffers that the device fills, 445 and 500. `FreshMemory` has two threads or more make them first, faster than the device
comes after: nearly all of that is gone. Who copies from memory waits for nothing, and is best left to touch it.

Any thread. Nobody has touched what is given out, and forked children see a copy.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from ckptstore_tiers.prefault import MADV_POPULATE_WRITE
from ckptstore_tiers.shared_mapping import HUGE_PAGE_BYTES, advise
from ckptstore_tiers.sources import address_of

#: From this size on, the rest of the last huge page is a small part of the whole.
_ROUNDED_FROM_BYTES = 4 * HUGE_PAGE_BYTES
#: What one thread touches in one go, in half a millisecond.
_TOUCHED_BYTES = 2 * HUGE_PAGE_BYTES
#: Less is touched by whoever fills it before a thread has started.
_WORTH_TOUCHING_BYTES = 4 * _TOUCHED_BYTES
#: One is not enough to stay ahead of a device; more than memory has room for are none the faster.
_LEAST_THREADS, _MOST_THREADS = 2, 8


def private_memory(size_bytes: int) -> memoryview:
    """Writable memory of so many bytes."""
    huge = size_bytes >= _ROUNDED_FROM_BYTES or (size_bytes > 0 and size_bytes % HUGE_PAGE_BYTES == 0)
    if not huge:
        return memoryview(mmap.mmap(-1, max(size_bytes, 1), mmap.MAP_PRIVATE))[:size_bytes]
    # The kernel puts a mapping at a huge page's boundary if its length is a multiple of one.
    memory = mmap.mmap(-1, -(-size_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES, mmap.MAP_PRIVATE)
    with suppress(OSError):  # a kernel without them says EINVAL
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)[:size_bytes]


class FreshMemory:
    """Views of private memory that nobody has touched yet, and threads that do so ahead of whoever fills them. A context manager.

    They change no byte. Where the kernel cannot (before Linux 5.14), or has no memory left, whoever fills it touches it.
    """

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = views
        self._lock = threading.Lock()
        self._begun = False
        self._steps: deque[memoryview] = deque()
        self._threads: list[threading.Thread] = []

    def touch(self) -> None:
        """Begin, in the order of the views, unless it was begun. Any thread."""
        with self._lock:
            if self._begun:
                return
            self._begun = True
            if sum(map(len, self._views)) < _WORTH_TOUCHING_BYTES:
                return
            for view in self._views:
                self._steps.extend(view[start : start + _TOUCHED_BYTES] for start in range(0, len(view), _TOUCHED_BYTES))
            count = min(_MOST_THREADS, max(_LEAST_THREADS, len(os.sched_getaffinity(0)) // 2))
            for _ in range(count):
                self._threads.append(threading.Thread(target=_touch, args=(self._steps,), name="ckptstore-touch", daemon=True))
                self._threads[-1].start()

    def __enter__(self) -> FreshMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self._steps.clear()
        for thread in self._threads:
            thread.join()


def _touch(steps: deque[memoryview]) -> None:
    with suppress(IndexError):  # none is left
        while True:
            view = steps.popleft()
            if advise(address_of(view), len(view), MADV_POPULATE_WRITE):
                return
