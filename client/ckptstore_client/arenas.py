"""Where do new tensors lie? Neighbours in the file lie side by side in one arena: page-aligned memory in which every byte has the place
that it has in a page of the file, so that blocks are read by O_DIRECT straight to where they stay, and hashed there.

Fresh memory is what a load into new tensors costs most: a page fault each 4 KiB takes three times as long as reading the bytes. So
arenas ask for huge pages, and the threads that read are those that fault them in, while the others' reads are under way.

Each tensor has a storage of its own (a `torch.save` of one does not write its neighbours) and keeps its arena alive. An arena ends at
the first tensor beyond ARENA_BYTES: a state of which only the optimizer's half is kept does not hold the other half.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ckptstore.safetensors_format import DTYPE_BITS, TensorEntry
from ckptstore_tiers.shared_mapping import HUGE_PAGE_BYTES
from ckptstore_tiers.sources import ALIGNMENT_BYTES

#: What one kept tensor may keep alive beyond itself.
ARENA_BYTES = 64 * 1024 * 1024
#: Less than this is not worth a mapping: the framework's own allocator does.
_LEAST_BYTES = 1024 * 1024
#: From this size on, the rest of the last huge page is a small part of the whole.
_HUGE_FROM_BYTES = 4 * HUGE_PAGE_BYTES


@dataclass(frozen=True)
class Arena:
    """`memory` holds the data's bytes from `base` on, and all of these tensors' bytes."""

    entries: Sequence[TensorEntry]
    memory: memoryview
    base: int


def arenas(entries: Sequence[TensorEntry], data_start: int) -> Iterator[Arena]:
    """Memory for these tensors, sorted by `start`; those that are in none of the arenas are the framework's to allocate."""
    run: list[TensorEntry] = []
    for entry in entries:
        if run and (entry.start != run[-1].end or run[-1].end - run[0].start >= ARENA_BYTES):
            yield from _arena(run, data_start)
            run = []
        if (data_start + entry.start) * 8 % max(DTYPE_BITS[entry.dtype], 8) == 0:  # else its elements would lie across words
            run.append(entry)
    yield from _arena(run, data_start)


def _arena(run: Sequence[TensorEntry], data_start: int) -> Iterator[Arena]:
    if not run or run[-1].end - run[0].start < _LEAST_BYTES:
        return
    base = run[0].start - (data_start + run[0].start) % ALIGNMENT_BYTES
    yield Arena(run, anonymous_memory(run[-1].end - base), base)


def anonymous_memory(size_bytes: int) -> memoryview:
    """Fresh, page-aligned memory of this process that nobody has touched; of huge pages, where there are any."""
    if size_bytes < _HUGE_FROM_BYTES:
        return memoryview(mmap.mmap(-1, max(size_bytes, 1), mmap.MAP_PRIVATE))[:size_bytes]
    # The kernel puts a mapping at a huge page's boundary if its length is a multiple of one.
    memory = mmap.mmap(-1, -(-size_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES, mmap.MAP_PRIVATE)
    with suppress(OSError):  # a kernel without them says EINVAL
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)[:size_bytes]
