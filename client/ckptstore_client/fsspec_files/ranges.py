"""How are many ranges of many files read at once? Those of one file that touch the same blocks in one go, and several goes in parallel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from ckptstore_client.fsspec_files.new_bytes import filled_bytes
from ckptstore_client.tree import TreeFile
from ckptstore_tiers.checksums import BLOCK_BYTES

#: Reads at once; each reads several blocks at once by itself.
READERS = 8


@dataclass(frozen=True)
class Range:
    """Bytes `start` to `stop` of a file; `index` is the caller's number for it."""

    index: int
    start: int
    stop: int


def clipped(start: int | None, end: int | None, size_bytes: int) -> tuple[int, int]:
    """What fsspec means by `start` and `end`, either of which may be None, negative (from the end) or beyond it."""
    first, stop, _ = slice(start, end).indices(size_bytes)
    return first, max(first, stop)


def read_ranges(file: TreeFile, wanted: Sequence[Range]) -> dict[int, bytes]:
    """The bytes of each range, by its index."""
    groups = list(_together(sorted(wanted, key=lambda item: item.start)))
    if len(groups) <= 1:
        found = [_read(file, group) for group in groups]
    else:
        with ThreadPoolExecutor(min(READERS, len(groups)), thread_name_prefix="ckptstore-ranges") as executor:
            found = list(executor.map(lambda group: _read(file, group), groups))
    return {index: data for part in found for index, data in part.items()}


def _together(ranges: Iterable[Range]) -> Iterable[list[Range]]:
    """Neighbours that share a block, or overlap: each block is read and verified once."""
    group: list[Range] = []
    stop = -1
    for item in ranges:
        if group and item.start // BLOCK_BYTES > max(0, stop - 1) // BLOCK_BYTES:
            yield group
            group, stop = [], -1
        group.append(item)
        stop = max(stop, item.stop)
    if group:
        yield group


def _read(file: TreeFile, group: Sequence[Range]) -> dict[int, bytes]:
    first, stop = group[0].start, max(item.stop for item in group)
    data = filled_bytes(stop - first, partial(file.read_into, first))
    if len(group) == 1:
        return {group[0].index: data}
    return {item.index: data[item.start - first : item.stop - first] for item in group}
