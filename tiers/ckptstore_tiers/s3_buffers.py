"""Where parts and ranges lie on their way: page-aligned memory that is used again and again, and the system's to take while nobody does.

Fresh memory for each part would cost 0.3 to 1 CPU seconds a GB in page faults. Idle buffers are marked MADV_FREE: the kernel takes their
pages when memory is short, and otherwise the next transfer finds them as they were. Thread-safe; a buffer belongs to its borrower.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Iterator

#: What one object may hold at a time on its way up or down.
OBJECT_MEMORY_BYTES = 128 * 1024 * 1024


class PartBuffers:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._idle: list[mmap.mmap] = []
        self._lent: dict[int, mmap.mmap] = {}

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Around a transfer of one object: after the last one the system may have the memory."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    for memory in self._idle:
                        memory.madvise(mmap.MADV_FREE)

    def borrow(self, size_bytes: int) -> memoryview:
        """At least so many bytes, with anything in them."""
        with self._lock:
            found = next((position for position, idle in enumerate(self._idle) if len(idle) >= size_bytes), None)
            memory = self._idle.pop(found) if found is not None else _new_memory(size_bytes)
            view = memoryview(memory)
            self._lent[id(view)] = memory
            return view

    def give_back(self, view: memoryview) -> None:
        """What `borrow` gave; nothing of it may be used any more."""
        with self._lock:
            memory = self._lent.pop(id(view))
            if sum(map(len, self._idle)) < OBJECT_MEMORY_BYTES:
                self._idle.append(memory)


def _new_memory(size_bytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory knows no MADV_FREE
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)  # a kernel without them says EINVAL
    return memory
