"""How do bytes get from a rank's file into tensors, in few large reads?

New tensors lie in arenas where they can, and large tensors that exist may have memory in the file's order: the reader fills both in
place. Small ones, strided ones and those on a device come through a buffer of bounded size and are copied from there in bulk. Only
blocks that hold something wanted are read.

A call that fails leaves its destinations partly filled. One call, one thread, beside the reader's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckptstore.part_reading import TensorRef
from ckptstore.safetensors_format import DTYPE_BITS, TensorEntry
from ckptstore_client.arenas import Arena, arenas, is_aligned
from ckptstore_client.frameworks import TensorFramework, framework
from ckptstore_client.rank_file import RankFile
from ckptstore_client.reading import Piece, VerifiedObject
from ckptstore_tiers.private_memory import FreshMemory, private_memory
from ckptstore_tiers.sources import address_of

#: Below this a tensor goes through the buffer: a system call's piece costs more than the second copy.
DIRECT_BYTES = 256 * 1024
#: Temporary memory of a load, however large the state.
BUFFER_BYTES = 256 * 1024 * 1024

#: By tensor key: who is to hold the bytes.
Targets = Mapping[str, Sequence[tuple[TensorFramework, Any]]]


@dataclass
class _Straight:
    """Pieces that go straight into fresh memory, and that memory."""

    pieces: list[Piece] = field(default_factory=list)
    fresh: list[memoryview] = field(default_factory=list)


def fill(file: RankFile, destinations: Mapping[TensorRef, Sequence[Any]]) -> None:
    """Read the referred tensors into these, which fit them."""
    by_key: dict[str, list[tuple[TensorFramework, Any]]] = {}
    for ref, values in destinations.items():
        by_key.setdefault(ref.key, []).extend((framework(ref.tag), value) for value in values)
    for reader, data_start, wanted in file.homes(by_key):
        _read(reader, data_start, [entry for entry in wanted if entry.size_bytes], by_key)


def read_new(file: RankFile, refs: Iterable[TensorRef], *, mapped: bool = False) -> dict[TensorRef, Any]:
    """A new tensor for each reference, with its bytes; `mapped`, those of the files themselves where they can be mapped."""
    by_key: dict[str, list[TensorRef]] = {}
    for ref in refs:
        by_key.setdefault(ref.key, []).append(ref)
    tensors: dict[TensorRef, Any] = {}
    for reader, data_start, wanted in file.homes(by_key):
        alone = [entry for entry in wanted if entry.size_bytes and len(by_key[entry.key]) == 1]
        memory = reader.map() if mapped else None
        if memory is None:
            there, straight = _in_arenas(alone, data_start, by_key)
        else:
            there = _over(Arena([entry for entry in alone if is_aligned(entry, data_start)], memory, -data_start), by_key)
            straight = _Straight()
        others = [entry for entry in wanted if by_key[entry.key][0] not in there]
        made = {ref: framework(ref.tag).empty(entry) for entry in others for ref in by_key[entry.key]}
        targets = {entry.key: [(framework(ref.tag), made[ref]) for ref in by_key[entry.key]] for entry in others}
        _read(reader, data_start, [entry for entry in others if entry.size_bytes], targets, straight)
        tensors |= there | made
    return tensors


def new_tensors(entries: Mapping[TensorRef, TensorEntry]) -> tuple[dict[TensorRef, Any], list[memoryview]]:
    """New tensors like these entries, wherever their bytes come from, and the memory of them that nobody has touched."""
    side_by_side: list[TensorEntry] = []
    position = 0
    for ref, entry in sorted(entries.items(), key=lambda item: -DTYPE_BITS[item[1].dtype]):  # each is aligned where the wider ones end
        side_by_side.append(TensorEntry(ref.key, entry.dtype, entry.shape, position, position + entry.size_bytes))
        position += entry.size_bytes
    there, straight = _in_arenas([entry for entry in side_by_side if entry.size_bytes], 0, {ref.key: [ref] for ref in entries})
    others = {ref: framework(ref.tag).empty(entry) for ref, entry in entries.items() if ref not in there}
    return there | others, straight.fresh


def _in_arenas(
    entries: Sequence[TensorEntry], data_start: int, by_key: Mapping[str, Sequence[TensorRef]]
) -> tuple[dict[TensorRef, Any], _Straight]:
    """New tensors for those entries that an arena has room for, and what of the file fills them."""
    tensors: dict[TensorRef, Any] = {}
    straight = _Straight()
    for arena in arenas(entries, data_start):
        tensors |= _over(arena, by_key)
        start, stop = arena.entries[0].start, arena.entries[-1].end
        straight.pieces.append(Piece(data_start + start, data_start + stop, address_of(arena.memory) + start - arena.base))
        straight.fresh.append(arena.memory)
    return tensors, straight


def _over(arena: Arena, by_key: Mapping[str, Sequence[TensorRef]]) -> dict[TensorRef, Any]:
    """New tensors on the arena's memory."""
    groups: dict[str, list[TensorEntry]] = {}
    for entry in arena.entries:
        groups.setdefault(by_key[entry.key][0].tag, []).append(entry)
    tensors: dict[TensorRef, Any] = {}
    for tag, group in groups.items():
        made = framework(tag).over(arena.memory, group, arena.base)
        tensors.update((by_key[entry.key][0], tensor) for entry, tensor in zip(group, made, strict=True))
    return tensors


# --- in batches ---------------------------------------------------------------------------------------------------


@dataclass
class _Batch:
    """What is read in one go: pieces straight into place, and the rest into a buffer."""

    pieces: list[Piece]
    fresh: list[memoryview]
    direct: list[TensorEntry] = field(default_factory=list)
    buffered: list[TensorEntry] = field(default_factory=list)
    buffer_bytes: int = 0


def _read(
    reader: VerifiedObject, data_start: int, entries: Sequence[TensorEntry], targets: Targets, straight: _Straight | None = None
) -> None:
    """Fill the targets of these entries, and what goes straight to its place."""
    straight = straight or _Straight()
    stretches = [(data_start + entry.start, data_start + entry.end) for entry in entries]
    reader.want(sorted([*stretches, *((piece.start, piece.stop) for piece in straight.pieces)]))
    for batch in _batches(data_start, entries, targets, straight):
        _read_batch(reader, data_start, batch, targets)


def _batches(data_start: int, entries: Sequence[TensorEntry], targets: Targets, straight: _Straight) -> Iterator[_Batch]:
    batch = _Batch(list(straight.pieces), list(straight.fresh))
    for entry in entries:
        address = _direct_address(entry, targets[entry.key])
        if address is not None:
            batch.direct.append(entry)
            batch.pieces.append(Piece(data_start + entry.start, data_start + entry.end, address))
            continue
        if batch.buffered and batch.buffer_bytes + entry.size_bytes > BUFFER_BYTES:
            yield batch
            batch = _Batch([], [])
        batch.buffered.append(entry)
        batch.buffer_bytes += entry.size_bytes
    if batch.pieces or batch.buffered:
        yield batch


def _direct_address(entry: TensorEntry, targets: Sequence[tuple[TensorFramework, Any]]) -> int | None:
    if len(targets) != 1 or entry.size_bytes < DIRECT_BYTES:
        return None
    only_framework, value = targets[0]
    return only_framework.address(value)


def _read_batch(reader: VerifiedObject, data_start: int, batch: _Batch, targets: Targets) -> None:
    buffer = private_memory(batch.buffer_bytes)
    moved: list[TensorEntry] = []  # the buffered tensors, at their places in it
    buffered: list[Piece] = []
    position, base = 0, address_of(buffer)
    for entry in batch.buffered:
        moved.append(TensorEntry(entry.key, entry.dtype, entry.shape, position, position + entry.size_bytes))
        start, stop, address = data_start + entry.start, data_start + entry.end, base + position
        if buffered and buffered[-1].stop == start:
            buffered[-1] = Piece(buffered[-1].start, stop, buffered[-1].address)  # neighbours in the file are one piece
        else:
            buffered.append(Piece(start, stop, address))
        position += entry.size_bytes
    with FreshMemory([*batch.fresh, buffer]) as fresh:
        reader.fill(sorted([*batch.pieces, *buffered], key=lambda piece: piece.start), fresh)
    _scatter(buffer, moved, targets)
    for entry in batch.direct:
        only_framework, value = targets[entry.key][0]
        only_framework.touched([value])


def _scatter(buffer: memoryview, entries: Sequence[TensorEntry], targets: Targets) -> None:
    """Copy from the buffer to the tensors, all of a framework in one call."""
    groups: dict[int, tuple[TensorFramework, list[TensorEntry], list[Any]]] = {}
    for entry in entries:
        for target, value in targets[entry.key]:
            group = groups.setdefault(id(target), (target, [], []))
            group[1].append(entry)
            group[2].append(value)
    for target, moved, values in groups.values():
        target.copy(values, target.views(buffer, moved, 0))
