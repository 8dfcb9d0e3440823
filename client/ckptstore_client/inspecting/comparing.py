"""Which tensors of two checkpoints differ, and by how much? `store.diff`, `ckptstore diff`.

Nothing is read of tensors that are known to be equal: those that lie in the same place of the same object (an incremental save referred to
it), whose digests are equal (such a save noted them), or whose 4 MiB blocks have equal checksums (the catalog has those of every file; two
saves of the same structure put a tensor at the same place in its file). All else is read, both sides slab by slab, a bounded number of
bytes at a time, and compared bit by bit; what differs is told in numbers. Tensors that are spread over ranks are compared whole, whichever
ranks hold them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

import numpy as np

from ckptstore.errors import InvalidInput
from ckptstore.shards import Piece, Spread
from ckptstore.wire import Message
from ckptstore_client.inspecting.numbers import NUMBERS_AT_ONCE, Array, as_numbers, read_slabs
from ckptstore_client.inspecting.tensors import TensorInfo, tensor_info
from ckptstore_client.rank_file import RankFile
from ckptstore_client.sharding.loading import ShardedCheckpoint
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests

if TYPE_CHECKING:
    from ckptstore_client.store import Store


class TensorDifference(Message):
    """`retyped` has another shape, or another dtype: it is not compared. The numbers are those of `changed`, in doubles."""

    name: str
    change: Literal["added", "removed", "retyped", "changed"]
    before: TensorInfo | None = None
    after: TensorInfo | None = None
    elements: int = 0  # that differ in some bit
    max_abs: float | None = None  # the largest difference of two finite numbers
    relative: float | None = None  # norm of the difference / norm of the tensor before; None if that was zero
    not_finite: int = 0  # of the elements that differ, those that are NaN or infinite before or after


class Comparison(Message):
    """`unread` of the tensors that are equal were known to be without reading them."""

    before: str
    after: str
    differences: list[TensorDifference]
    equal: int
    unread: int


def compare(store: Store, before: str, after: str, only: str | Sequence[str] | None = None, *, rank: int | None = None) -> Comparison:
    """As `Store.diff`."""
    patterns = ("*",) if only is None else (only,) if isinstance(only, str) else tuple(only)
    paths = [store.stat(path).path for path in (before, after)]
    with ExitStack() as stack:
        old, new = (_Side(stack.enter_context(store.open_tensors(path, rank=rank))) for path in paths)
        wanted = sorted(name for name in {*old.names, *new.names} if any(fnmatchcase(name, pattern) for pattern in patterns))
        if only is not None and not wanted:
            raise InvalidInput("neither has such a tensor", operation="compare", subject=", ".join(patterns))
        differences: list[TensorDifference] = []
        equal = unread = 0
        for name in wanted:
            if name in old.names and name in new.names and old.is_known_to_equal(new, name):
                unread += 1
                equal += 1
            elif (found := _difference(old, new, name)) is not None:
                differences.append(found)
            else:
                equal += 1
    return Comparison(before=paths[0], after=paths[1], differences=differences, equal=equal, unread=unread)


def _difference(old: _Side, new: _Side, name: str) -> TensorDifference | None:
    before, after = old.spread(name), new.spread(name)
    infos = (None if before is None else tensor_info(before)), (None if after is None else tensor_info(after))
    if before is None or after is None:
        return TensorDifference(name=name, change="added" if before is None else "removed", before=infos[0], after=infos[1])
    if before.shape != after.shape or before.dtype != after.dtype:
        return TensorDifference(name=name, change="retyped", before=infos[0], after=infos[1])
    distance = Distance()
    pairs = zip(read_slabs(before, old.checkpoint.part), read_slabs(after, new.checkpoint.part), strict=True)
    for a, b in pairs:
        for start in range(0, len(a), NUMBERS_AT_ONCE):
            distance.add(a[start : start + NUMBERS_AT_ONCE], b[start : start + NUMBERS_AT_ONCE], before.dtype)
    if not distance.elements:
        return None
    return TensorDifference(
        name=name,
        change="changed",
        before=infos[0],
        after=infos[1],
        elements=distance.elements,
        max_abs=distance.max_abs,
        relative=distance.relative,
        not_finite=distance.not_finite,
    )


class Distance:
    """How far two tensors are apart, as their stored words come bit by bit."""

    def __init__(self) -> None:
        self.elements = 0
        self.not_finite = 0
        self.max_abs: float | None = None
        self._squares = 0.0
        self._before_squares = 0.0

    @property
    def relative(self) -> float | None:
        found = math.sqrt(self._squares / self._before_squares) if self._before_squares > 0 else math.inf
        return found if math.isfinite(found) else None

    def add(self, before: Array, after: Array, dtype: str) -> None:
        differs = _bits(before) != _bits(after)
        differs = differs.reshape(len(before), -1).any(axis=1)
        self.elements += int(np.count_nonzero(differs))
        numbers = _doubles(before, dtype)
        a, b = numbers[differs], _doubles(after[differs], dtype)
        finite = np.isfinite(a) & np.isfinite(b)
        self.not_finite += int(np.count_nonzero(~finite))
        with np.errstate(over="ignore"):  # a norm that no double holds is told as none
            self._before_squares += float(np.square(np.abs(numbers[np.isfinite(numbers)])).sum())
            apart = np.abs(b[finite] - a[finite])
            self._squares += float(np.square(apart).sum())
        if len(apart):
            self.max_abs = max(self.max_abs or 0.0, float(apart.max()))


def _bits(words: Array) -> Array:
    return words.view(np.uint8) if words.dtype.itemsize > 8 or words.dtype.kind == "c" else words.view(f"u{words.dtype.itemsize}")


def _doubles(words: Array, dtype: str) -> Array:
    numbers = as_numbers(words, dtype)
    return numbers if numbers.dtype.kind in "fc" else numbers.astype(np.float64)


# --- what need not be read ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lies:
    """Where a piece of a tensor lies, and what is known of its bytes."""

    object_id: str
    start: int
    stop: int
    digest: str | None
    blocks: BlockDigests | None  # of the object

    def equals(self, other: _Lies) -> bool:
        """False: it is not known."""
        if self.stop - self.start != other.stop - other.start:
            return False
        if (self.object_id, self.start) == (other.object_id, other.start):
            return True
        if self.digest is not None and other.digest is not None:
            return self.digest == other.digest
        if self.blocks is None or other.blocks is None or (self.start - other.start) % BLOCK_BYTES:
            return False
        shift = (other.start - self.start) // BLOCK_BYTES
        mine = range(self.start // BLOCK_BYTES, -(-self.stop // BLOCK_BYTES))
        return all(self.blocks.block(index) == other.blocks.block(index + shift) for index in mine)


class _Side:
    """One of the two checkpoints. What its files' headers say is kept: it grows with the pieces of its tensors."""

    def __init__(self, checkpoint: ShardedCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.names = {*checkpoint.index}
        self._known: dict[int, dict[str, _Lies]] = {}

    def spread(self, name: str) -> Spread | None:
        return self.checkpoint.index.tensor(name) if name in self.names else None

    def is_known_to_equal(self, other: _Side, name: str) -> bool:
        mine, theirs = self.checkpoint.index.tensor(name), other.checkpoint.index.tensor(name)
        if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
            return False
        pairs = zip(_in_order(mine.pieces()), _in_order(theirs.pieces()), strict=False)
        cut_alike = sum(1 for _ in mine.pieces()) == sum(1 for _ in theirs.pieces())
        return cut_alike and all(a.box == b.box and self._lies(a).equals(other._lies(b)) for a, b in pairs)

    def _lies(self, piece: Piece) -> _Lies:
        if piece.rank not in self._known:
            with self.checkpoint.part(piece.rank) as file:
                self._known[piece.rank] = dict(_lie(file))
        return self._known[piece.rank][piece.key]


def _lie(file: RankFile) -> Iterator[tuple[str, _Lies]]:
    """All tensors of a rank's file: of those in other objects only the digest is known."""
    for key, entry in file.header.tensors.items():
        elsewhere = file.elsewhere.get(key)
        if elsewhere is None:
            at = file.header.data_start + entry.start
            yield key, _Lies(file.reader.file.object_id, at, at + entry.size_bytes, file.digests.get(key), file.reader.digests)
        else:
            yield key, _Lies(elsewhere, entry.start, entry.end, file.digests.get(key), None)


def _in_order(pieces: Iterable[Piece]) -> list[Piece]:
    return sorted(pieces, key=lambda piece: piece.box.offset)
