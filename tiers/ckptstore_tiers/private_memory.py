"""Fresh, page-aligned memory of this process alone, of huge pages where there are any.

Huge pages matter twice: first touches cost a fault each 2 MiB instead of each 4 KiB, and a transfer by O_DIRECT is one piece of memory
for the device instead of a thousand, which it would take as four requests. The memory goes with the last view of it.

Any thread. Nobody has touched what is given out, and forked children see a copy.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

from ckptstore_tiers.shared_mapping import HUGE_PAGE_BYTES

#: From this size on, the rest of the last huge page is a small part of the whole.
_ROUNDED_FROM_BYTES = 4 * HUGE_PAGE_BYTES


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
