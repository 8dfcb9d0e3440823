"""How do boxes of stored tensors get into boxes of tensors here, reading only the blocks that hold something of them?

A want is a box of a whole tensor and the memory it belongs into. Each stored piece that has something of it gives a move: bytes of that
piece's file, which are one stretch if the box spans whole rows, else rows with gaps between them. A stretch that is large goes straight to
its place; all else comes through a buffer of bounded size, from which it is copied in bulk. Gaps are read along where they are
shorter than a block, since then every block is wanted anyway; longer ones are left out.

A call that fails leaves its destinations partly filled. Each rank's file is read by one thread, a few files at the same time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import prod
from typing import Any

from ckptstore.boxes import Box
from ckptstore.errors import InvalidInput
from ckptstore.safetensors_format import DTYPE_BITS, TensorEntry
from ckptstore.shards import Spread
from ckptstore_client.filling import BUFFER_BYTES, DIRECT_BYTES
from ckptstore_client.frameworks import TensorFramework
from ckptstore_client.rank_file import RankFile
from ckptstore_client.reading import Piece, VerifiedObject
from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.private_memory import FreshMemory, private_memory
from ckptstore_tiers.sources import address_of

#: Rank files that are read at the same time; each is read by several threads of its own.
_FILES_AT_ONCE = 4
#: Places in the buffer keep the alignment that they have in the file, to this many bytes.
_ALIGNED_BYTES = 16


@dataclass(frozen=True)
class Want:
    """`box` of the whole tensor belongs into `destination`, which has its shape."""

    spread: Spread
    box: Box
    framework: TensorFramework
    destination: Any
    #: other processes of this node may want the same box
    common: bool = True


@dataclass(frozen=True)
class _Move:
    """`size` elements from `source` on in the stored piece `key`, to `target` on in the destination."""

    key: str
    source: tuple[int, ...]
    target: tuple[int, ...]
    size: tuple[int, ...]
    want: Want


def fill_boxes(wants: Iterable[Want], open_part: Callable[[int], AbstractContextManager[RankFile]], *fresh: FreshMemory) -> None:
    """Read all of them; `fresh` is memory of theirs. InvalidInput, by name, if a file does not hold what it should."""
    moves: dict[int, list[_Move]] = defaultdict(list)
    for want in wants:
        for piece in want.spread.pieces(want.box):
            common = piece.box.common(want.box)
            if common is not None:
                source, target = _relative(common, piece.box), _relative(common, want.box)
                moves[piece.rank].append(_Move(piece.key, source, target, common.size, want))

    def read_part(rank: int) -> None:
        with open_part(rank) as file:
            if not _is_common(moves[rank]):
                file.reader.read_alone()
            _read_part(file, moves[rank], fresh)

    if len(moves) == 1:
        return read_part(*moves)
    with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="ckptstore-parts") as executor:
        for done in [executor.submit(read_part, rank) for rank in sorted(moves)]:
            done.result()
    return None


def _is_common(moves: Sequence[_Move]) -> bool:
    """Whether other processes may want most of what is wanted here of a file."""
    common = sum(prod(move.size) for move in moves if move.want.common)
    return 2 * common >= sum(prod(move.size) for move in moves)


def _relative(box: Box, within: Box) -> tuple[int, ...]:
    return tuple(start - origin for start, origin in zip(box.offset, within.offset, strict=True))


def _read_part(file: RankFile, moves: Sequence[_Move], fresh: Sequence[FreshMemory]) -> None:
    by_key: dict[str, list[_Move]] = defaultdict(list)
    for move in moves:
        entry = file.header.tensors.get(move.key)
        if entry is None or entry.dtype != move.want.spread.dtype or any(map(_beyond, move.source, move.size, entry.shape)):
            raise InvalidInput("the rank's file has not what shards.json says", operation="load", subject=move.key)
        by_key[move.key].append(move)
    for reader, data_start, entries in file.homes(by_key):
        direct: list[_Stretch] = []
        buffered: dict[tuple[int, int], _Stretch] = {}
        for entry in entries:
            for move in by_key[entry.key]:
                for stretch in _stretches(entry, move, data_start):
                    if stretch.address is not None:
                        direct.append(stretch)
                    elif (known := buffered.setdefault((stretch.start, stretch.stop), stretch)) is not stretch:
                        known.copies += stretch.copies
        stretches = sorted([*direct, *buffered.values()], key=lambda stretch: (stretch.start, stretch.stop))
        reader.want((stretch.start, stretch.stop) for stretch in stretches)
        for batch in _batches(stretches):
            _read_batch(reader, batch, fresh)


def _beyond(start: int, length: int, size: int) -> bool:
    return start + length > size


# --- from a box to bytes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Copy:
    """What to take out of a stretch: elements with these strides, into this view of a destination."""

    framework: TensorFramework
    dtype: str
    size: tuple[int, ...]
    strides: tuple[int, ...]
    target: Any


@dataclass
class _Stretch:
    """Bytes `start` to `stop` of an object: straight to `address`, or through the buffer to the copies."""

    start: int
    stop: int
    address: int | None = None
    touched: list[tuple[TensorFramework, Any]] = field(default_factory=list)
    copies: list[_Copy] = field(default_factory=list)


def _stretches(entry: TensorEntry, move: _Move, data_start: int) -> Iterator[_Stretch]:
    item = DTYPE_BITS[entry.dtype] // 8
    strides = _row_major(entry.shape)
    begin = data_start + entry.start + item * sum(map(int.__mul__, move.source, strides))
    destination, target = move.want.destination, move.want.framework
    if _extent(move.size, strides) == prod(move.size) and prod(move.size) * item >= DIRECT_BYTES:
        shape = tuple(destination.shape)
        there = _row_major(shape)
        address = target.address(destination) if _extent(move.size, there) == prod(move.size) else None
        if address is not None:
            address += item * sum(map(int.__mul__, move.target, there))
            yield _Stretch(begin, begin + prod(move.size) * item, address, [(target, destination)])
            return
    for first, size in _slabs(move.size, strides, item):
        start = begin + item * sum(map(int.__mul__, first, strides))
        where = tuple(slice(t + f, t + f + n) for t, f, n in zip(move.target, first, size, strict=True))
        copy = _Copy(target, entry.dtype, size, strides, destination[where if where else ...])
        yield _Stretch(start, start + item * _extent(size, strides), copies=[copy])


def _slabs(size: tuple[int, ...], strides: tuple[int, ...], item: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """First elements and sizes of boxes that make up one of `size`: each fits the buffer, and has no gap of a block or more in it."""
    axis = next((d for d, length in enumerate(size) if length > 1), None)
    if axis is None:
        yield (0,) * len(size), size
        return
    inner = _extent((*(1 for _ in size[: axis + 1]), *size[axis + 1 :]), strides)
    gap_bytes = (strides[axis] - inner) * item
    rows = 1 if gap_bytes >= BLOCK_BYTES else max(1, BUFFER_BYTES // 4 // max(strides[axis] * item, 1))
    for start in range(0, size[axis], rows):
        count = min(rows, size[axis] - start)
        slab = (*size[:axis], count, *size[axis + 1 :])
        inside = _slabs(slab, strides, item) if count == 1 else [((0,) * len(size), slab)]
        for first, part in inside:
            yield (*first[:axis], start, *first[axis + 1 :]), part


def _row_major(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(shape[d + 1 :]) for d in range(len(shape)))


def _extent(size: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last of a box, both included."""
    return 1 + sum((length - 1) * stride for length, stride in zip(size, strides, strict=True))


# --- reading ----------------------------------------------------------------------------------------------------------


def _batches(stretches: Sequence[_Stretch]) -> Iterator[list[_Stretch]]:
    """In order, without overlaps, and no more than the buffer holds."""
    batch: list[_Stretch] = []
    buffered, stop = 0, 0
    for stretch in stretches:
        size = 0 if stretch.address is not None else stretch.stop - stretch.start + _ALIGNED_BYTES
        if batch and (stretch.start < stop or buffered + size > BUFFER_BYTES):
            yield batch
            batch, buffered = [], 0
        batch.append(stretch)
        buffered += size
        stop = stretch.stop
    if batch:
        yield batch


def _read_batch(reader: VerifiedObject, batch: Sequence[_Stretch], fresh: Sequence[FreshMemory]) -> None:
    places: list[int] = []
    position = 0
    for stretch in batch:
        if stretch.address is None:
            position += (stretch.start - position) % _ALIGNED_BYTES
            places.append(position)
            position += stretch.stop - stretch.start
    buffer = private_memory(position) if position else memoryview(b"")
    base, there = address_of(buffer) if position else 0, iter(places)
    pieces: list[Piece] = []
    for stretch in batch:
        address = base + next(there) if stretch.address is None else stretch.address
        last = pieces[-1] if pieces else None
        if last is not None and last.stop == stretch.start and last.address + last.stop - last.start == address:
            pieces[-1] = Piece(last.start, stretch.stop, last.address)  # neighbours in the file and here are one piece
        else:
            pieces.append(Piece(stretch.start, stretch.stop, address))
    with FreshMemory([buffer]) as own:
        reader.fill(pieces, *fresh, own)
    _copy_out(buffer, batch, places)
    for stretch in batch:
        for framework, value in stretch.touched:
            framework.touched([value])


def _copy_out(buffer: memoryview, batch: Sequence[_Stretch], places: Sequence[int]) -> None:
    groups: dict[int, tuple[TensorFramework, list[Any], list[Any]]] = {}
    for stretch, place in zip((stretch for stretch in batch if stretch.address is None), places, strict=True):
        for copy in stretch.copies:
            group = groups.setdefault(id(copy.framework), (copy.framework, [], []))
            group[1].append(copy.target)
            group[2].append(copy.framework.strided(buffer, place, copy.dtype, copy.size, copy.strides))
    for framework, targets, sources in groups.values():
        framework.copy(targets, sources)
