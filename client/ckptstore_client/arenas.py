"""Where do new tensors lie? Neighbours in the file lie side by side in one arena: page-aligned memory in which every byte has the place
that it has in a page of the file, so that a block is one copy, and every element lies where its type wants it.

Fresh memory is what a load into new tensors costs most: a page fault each 4 KiB takes three times as long as reading the bytes. So
arenas ask for huge pages, and these are touched ahead of the reads (`private_memory`).

Each tensor has a storage of its own (a `torch.save` of one does not write its neighbours) and keeps its arena alive. An arena ends at
the first tensor beyond ARENA_BYTES: a state of which only the optimizer's half is kept does not hold the other half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ckptstore.safetensors_format import DTYPE_BITS, TensorEntry
from ckptstore_tiers.private_memory import private_memory
from ckptstore_tiers.sources import ALIGNMENT_BYTES

#: What one kept tensor may keep alive beyond itself.
ARENA_BYTES = 64 * 1024 * 1024
#: Less than this is not worth a mapping: the framework's own allocator does.
_LEAST_BYTES = 1024 * 1024


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
        if is_aligned(entry, data_start):
            run.append(entry)
    yield from _arena(run, data_start)


def is_aligned(entry: TensorEntry, data_start: int) -> bool:
    """Whether its elements lie on their own boundaries in the file, and so in memory that has the file's pages."""
    return (data_start + entry.start) * 8 % max(DTYPE_BITS[entry.dtype], 8) == 0


def _arena(run: Sequence[TensorEntry], data_start: int) -> Iterator[Arena]:
    if not run or run[-1].end - run[0].start < _LEAST_BYTES:
        return
    base = run[0].start - (data_start + run[0].start) % ALIGNMENT_BYTES
    yield Arena(run, private_memory(run[-1].end - base), base)
