"""A safetensors file of some of a segment's tensors: what is stored of a rank's state where the rest is stored elsewhere.

Its bytes are gathered from the segment when they are put (`GatheredSource`), so nothing is copied here. Values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ckptstore.safetensors_format import Header, TensorEntry, build_header
from ckptstore_tiers.gathered_source import GatheredSource


@dataclass(frozen=True)
class PartialFile:
    header: Header
    source: GatheredSource

    @classmethod
    def of(cls, entries: Sequence[TensorEntry], metadata: Mapping[str, str], data: memoryview) -> PartialFile:
        """`entries` are in their order in `data`, from whose begin they count. InvalidInput for a header that no reader accepts."""
        tensors: dict[str, TensorEntry] = {}
        position = 0
        for entry in entries:
            tensors[entry.key] = moved(entry, position)
            position += entry.size_bytes
        head = build_header(tensors.values(), dict(metadata))
        return cls(Header(tensors, dict(metadata), len(head)), GatheredSource([head, *_runs(entries, data)]))


def in_order(header: Header) -> list[TensorEntry]:
    """The tensors of a file in the order of their bytes."""
    return sorted(header.tensors.values(), key=lambda entry: (entry.start, entry.end))


def moved(entry: TensorEntry, start: int) -> TensorEntry:
    return TensorEntry(entry.key, entry.dtype, entry.shape, start, start + entry.size_bytes)


def _runs(entries: Iterable[TensorEntry], data: memoryview) -> Iterator[memoryview]:
    """The bytes of these tensors, neighbours in one piece."""
    start = stop = 0
    for entry in entries:
        if entry.start != stop:
            yield data[start:stop]
            start = entry.start
        stop = entry.end
    yield data[start:stop]
