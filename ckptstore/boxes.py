"""Which elements of a tensor does a shard hold, and do all shards together hold each exactly once? Boxes, grids of boxes, and their cover.

A box is an offset and a size in each dimension. A grid says of a whole tensor at once which rank holds which box: each dimension is cut
into pieces by factors, one after the other, as `torch.chunk` does it (pieces of ceil(n/k), the last ones shorter or empty), and the cells
belong to ranks in row-major order. So a grid is independent of the tensor's sizes, and 2,000 tensors of a model share a handful of them.

Pure functions over values.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise, product
from math import prod


@dataclass(frozen=True, slots=True)
class Box:
    offset: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        return cls((0,) * len(shape), tuple(shape))

    @property
    def volume(self) -> int:
        return prod(self.size)

    def stops(self) -> tuple[int, ...]:
        return tuple(start + length for start, length in zip(self.offset, self.size, strict=True))

    def common(self, other: Box) -> Box | None:
        """What both hold; None if that is nothing."""
        offset = tuple(map(max, self.offset, other.offset))
        size = tuple(stop - start for start, stop in zip(offset, map(min, self.stops(), other.stops()), strict=True))
        return Box(offset, size) if all(length > 0 for length in size) else None

    def fits(self, shape: Sequence[int]) -> bool:
        return len(shape) == len(self.size) and all(stop <= length for stop, length in zip(self.stops(), shape, strict=True))

    def __str__(self) -> str:
        return "[" + ", ".join(f"{start}:{stop}" for start, stop in zip(self.offset, self.stops(), strict=True)) + "]"


@dataclass(frozen=True)
class Grid:
    """`factors[d]` cut dimension d; `ranks` own the cells, no rank more than one."""

    factors: tuple[tuple[int, ...], ...]
    ranks: tuple[int, ...]

    @cached_property
    def cell_of(self) -> dict[int, int]:
        return {rank: number for number, rank in enumerate(self.ranks)}

    def cells(self, shape: Sequence[int], wanted: Box | None = None) -> Iterator[tuple[int, Box]]:
        """The ranks and their boxes, without empty ones; those alone that have something of `wanted`."""
        cuts = [cut(length, factors) for length, factors in zip(shape, self.factors, strict=True)]
        counts = [len(pieces) - 1 for pieces in cuts]
        ranges = [
            range(bisect_right(pieces, start) - 1, bisect_left(pieces, stop)) if wanted is not None else range(count)
            for pieces, count, start, stop in zip(
                cuts, counts, wanted.offset if wanted else counts, wanted.stops() if wanted else counts, strict=True
            )
        ]
        for position in product(*ranges):
            size = tuple(pieces[i + 1] - pieces[i] for pieces, i in zip(cuts, position, strict=True))
            if all(size):
                yield self.ranks[self.cell(position)], Box(tuple(pieces[i] for pieces, i in zip(cuts, position, strict=True)), size)

    def cell(self, position: Sequence[int]) -> int:
        """The row-major number of the cell at a position."""
        number = 0
        for index, factors in zip(position, self.factors, strict=True):
            number = number * prod(factors) + index
        return number

    def of_rank(self, rank: int, shape: Sequence[int]) -> Box | None:
        """The box of a rank, which has one at most; None if it is empty."""
        number = self.cell_of.get(rank)
        if number is None:
            return None
        position = []
        for factors in reversed(self.factors):
            number, index = divmod(number, prod(factors))
            position.append(index)
        bounds = [
            cut(length, factors)[index : index + 2] for length, factors, index in zip(shape, self.factors, reversed(position), strict=True)
        ]
        box = Box(tuple(start for start, _ in bounds), tuple(stop - start for start, stop in bounds))
        return box if all(box.size) else None

    def is_one_box_a_rank(self) -> bool:
        return len(self.cell_of) == len(self.ranks) == prod(prod(factors) for factors in self.factors)


@lru_cache(maxsize=1 << 14)
def cut(length: int, factors: tuple[int, ...]) -> tuple[int, ...]:
    """Where the pieces of a dimension begin, and where the last one ends."""
    bounds = [0, length]
    for factor in factors:
        finer = []
        for start, stop in pairwise(bounds):
            step = -(-(stop - start) // factor)
            finer += [min(start + i * step, stop) for i in range(factor)]
        bounds = [*finer, length]
    return tuple(bounds)


def cover_fault(shape: Sequence[int], shards: Sequence[tuple[int, Box]]) -> str | None:
    """Why the boxes of these ranks are not the whole tensor, each element once; None if they are."""
    for rank, box in shards:
        if not box.fits(shape):
            return f"rank {rank} has {box} of it, which lies outside its shape {tuple(shape)}"
    if (overlap := _overlap(shards)) is not None:
        (first, box), (second, _) = overlap
        return f"ranks {first} and {second} both have {box} of it"
    if sum(box.volume for _, box in shards) < prod(shape):
        return f"no rank has {_hole(Box.whole(shape), [box for _, box in shards])} of it, which has the shape {tuple(shape)}"
    return None


def _overlap(shards: Sequence[tuple[int, Box]]) -> tuple[tuple[int, Box], tuple[int, Box]] | None:
    """Two shards that have a box in common, which the first comes with: a sweep along the dimension in which they differ most."""
    if len(shards) < 2:
        return None
    axis = max(range(len(shards[0][1].offset)), key=lambda d: len({box.offset[d] for _, box in shards}), default=None)
    active: list[tuple[int, Box]] = []
    for rank, box in sorted(shards, key=lambda shard: 0 if axis is None else shard[1].offset[axis]):
        if not box.volume:
            continue
        if axis is not None:
            active = [(other, there) for other, there in active if there.offset[axis] + there.size[axis] > box.offset[axis]]
        for other, there in active:
            if (both := box.common(there)) is not None:
                return (min(rank, other), both), (max(rank, other), both)
        active.append((rank, box))
    return None


def _hole(within: Box, boxes: Sequence[Box]) -> Box:
    """Some box that none of `boxes` has anything of, where they do not cover `within`."""
    axis = 0
    hole = within
    while boxes:
        edges = sorted({hole.offset[axis], *(edge for box in boxes for edge in (box.offset[axis], box.offset[axis] + box.size[axis]))})
        for start, stop in pairwise(edges):
            slab = _replaced(hole, axis, start, stop)
            inside = [box for box in boxes if box.common(slab) is not None]
            if sum(common.volume for box in inside if (common := box.common(slab))) < slab.volume:
                hole, boxes, axis = slab, inside, axis + 1
                break
        else:
            return _replaced(hole, axis, edges[-1], hole.offset[axis] + hole.size[axis])
    return hole


def _replaced(box: Box, axis: int, start: int, stop: int) -> Box:
    offset, size = list(box.offset), list(box.size)
    offset[axis], size[axis] = start, stop - start
    return Box(tuple(offset), tuple(size))
