"""How does a user say that a tensor of this rank is a part of a larger one, where no DTensor says it? Experts, slices, stages.

    store.save(path, state, shards={"model/experts/*": Part(0, ep_rank, ep_size, replica=(dp_rank, dp_size))})

A key is a leaf's place, or a pattern of places. Values without state; any thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol
from zlib import crc32

from ckptstore.boxes import Box
from ckptstore.errors import InvalidInput


class Extent(Protocol):
    """What `shards=` takes: which box of which whole a tensor of this shape is, and which of the ranks that have the same box this is."""

    @property
    def replica(self) -> tuple[int, int]: ...

    def resolve(self, shape: tuple[int, ...]) -> tuple[Box, tuple[int, ...]]:
        """The box, and the shape of the whole. ValueError if that cannot be."""
        ...


@dataclass(frozen=True)
class Slice:
    """This rank's tensor begins at `offset` of a whole of shape `of`. `replica=(i, n)`: n ranks have the same, this is the i-th."""

    offset: Sequence[int]
    of: Sequence[int]
    replica: tuple[int, int] = (0, 1)

    def resolve(self, shape: tuple[int, ...]) -> tuple[Box, tuple[int, ...]]:
        box, whole = Box(tuple(map(int, self.offset)), shape), tuple(map(int, self.of))
        if len(box.offset) != len(shape) or min(box.offset, default=0) < 0 or not box.fits(whole):
            raise ValueError(f"a tensor of shape {shape} at {tuple(self.offset)} does not lie in one of {whole}")
        return box, whole


@dataclass(frozen=True)
class Part:
    """This rank's tensor is the `index`-th of `count` equal parts along `dim`. `replica` as in Slice."""

    dim: int
    index: int
    count: int
    replica: tuple[int, int] = (0, 1)

    def resolve(self, shape: tuple[int, ...]) -> tuple[Box, tuple[int, ...]]:
        if not -len(shape) <= self.dim < len(shape) or not 0 <= self.index < self.count:
            raise ValueError(f"part {self.index} of {self.count} along {self.dim} of a tensor of shape {shape}")
        dim = self.dim % len(shape)
        offset, whole = [0] * len(shape), list(shape)
        offset[dim], whole[dim] = self.index * shape[dim], self.count * shape[dim]
        return Box(tuple(offset), shape), tuple(whole)


@dataclass(frozen=True)
class ShardRequest:
    """What one rank's save says of sharding. `shards` None: only DTensors say it."""

    rank: int
    world_size: int
    shards: Mapping[str, Extent] | None = None
    expect: tuple[str, ...] = ()

    @property
    def is_asked_for(self) -> bool:
        return self.shards is not None or bool(self.expect)


def declared(places: Sequence[str], shards: Mapping[str, Extent], operation: str) -> dict[str, Extent]:
    """By place, what is said of it. InvalidInput for a key of `shards` that no place matches."""
    found: dict[str, Extent] = {}
    for pattern, extent in shards.items():
        if not hasattr(extent, "resolve"):
            raise InvalidInput(f"shards= takes Slice and Part, not {type(extent)!r:.80}", operation=operation, subject=pattern)
        matches = [pattern] if pattern in found else [place for place in places if place == pattern or fnmatchcase(place, pattern)]
        if not matches:
            hint = "places are the keys on the way to a leaf, joined with '/'"
            raise InvalidInput("shards= names it, and no tensor of the state is there", operation=operation, subject=pattern, hint=hint)
        found.update((place, extent) for place in matches if place not in found or place == pattern)
    return found


def is_owner(name: str, replica: tuple[int, int]) -> bool:
    """Whether this one, of ranks that all have the same, stores it: chosen by the name, so that ranks agree without a word."""
    index, count = replica
    return crc32(name.encode("utf-8", "surrogatepass")) % count == index
