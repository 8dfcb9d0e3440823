"""What tensors are in a checkpoint, where do they lie, and what are their numbers like? `ckptstore cat`.

A list reads headers, or `shards.json`, alone; statistics read the blocks of the tensors that were asked for, slab by slab, verified.
Tensors that are spread over ranks are one; of ranks that saved states of their own, it is one rank's that is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptstore.errors import NotFound
from ckptstore.manifest import part_file_name
from ckptstore.safetensors_format import tensor_size_bytes
from ckptstore.shards import Spread
from ckptstore.wire import Message
from ckptstore_client.inspecting.numbers import NUMBERS_AT_ONCE, Array, as_numbers, read_slabs
from ckptstore_client.sharding.loading import ShardedCheckpoint

if TYPE_CHECKING:
    from ckptstore_client.store import Store

#: Numbers from a tensor's beginning that are shown.
FIRST = 8
#: Pieces of a tensor whose place is told.
MOST_PLACES = 64


class TensorInfo(Message):
    name: str
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    size_bytes: int


class Place(Message):
    """Bytes of an object that hold a piece of a tensor."""

    rank: int
    box: str
    file: str  # of the checkpoint; "": an object of an earlier one
    object_id: str
    start: int
    size_bytes: int


class TensorStatistics(TensorInfo):
    """Of complex numbers only `nans`, `infinities`, `zeros` and `first`. The others are of finite numbers, and None if there is none."""

    minimum: float | int | None = None
    maximum: float | int | None = None
    mean: float | None = None
    std: float | None = None
    nans: int = 0
    infinities: int = 0
    zeros: int = 0
    first: tuple[float | int | bool | str, ...] = ()  # what JSON has no number for is text
    places: tuple[Place, ...] = ()  # of the first pieces
    pieces: int = 0


def list_tensors(checkpoint: ShardedCheckpoint, patterns: Sequence[str] = ()) -> Iterator[TensorInfo]:
    """In byte order of names. NotFound for a pattern that is none's."""
    for name in names(checkpoint, patterns):
        yield tensor_info(checkpoint.index.tensor(name))


def names(checkpoint: ShardedCheckpoint, patterns: Sequence[str]) -> list[str]:
    known = sorted(checkpoint.index)
    if not patterns:
        return known
    for pattern in patterns:
        if pattern not in checkpoint.index and not any(fnmatchcase(name, pattern) for name in known):
            hint = "`ckptstore cat PATH` lists them"
            raise NotFound("it has no such tensor", operation="look into checkpoint", subject=pattern, hint=hint)
    return [name for name in known if any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)]


def describe(store: Store, path: str, patterns: Sequence[str], *, rank: int | None = None) -> Iterator[TensorStatistics]:
    """The numbers of the tensors whose names these are, or match; one after the other."""
    with store.open_tensors(path, rank=rank) as checkpoint:
        for name in names(checkpoint, patterns):
            yield _described(checkpoint, checkpoint.index.tensor(name))


def tensor_info(spread: Spread) -> TensorInfo:
    size_bytes = tensor_size_bytes(spread.dtype, spread.shape)
    return TensorInfo(name=spread.name, dtype=spread.dtype, shape=spread.shape, size_bytes=size_bytes)


def _described(checkpoint: ShardedCheckpoint, spread: Spread) -> TensorStatistics:
    running = Running()
    for words in read_slabs(spread, checkpoint.part):
        for start in range(0, len(words), NUMBERS_AT_ONCE):
            running.add(as_numbers(words[start : start + NUMBERS_AT_ONCE], spread.dtype))
    pieces = list(spread.pieces())
    places = tuple(_place(checkpoint, piece.rank, piece.key, str(piece.box)) for piece in pieces[:MOST_PLACES])
    return TensorStatistics(**tensor_info(spread).model_dump(), **running.result(), places=places, pieces=len(pieces))


def _place(checkpoint: ShardedCheckpoint, rank: int, key: str, box: str) -> Place:
    with checkpoint.part(rank) as file:
        entry, elsewhere = file.header.tensors[key], file.elsewhere.get(key)
        start = entry.start if elsewhere else file.header.data_start + entry.start
        name = "" if elsewhere else part_file_name(rank, checkpoint.index.world_size)
        object_id = elsewhere or file.reader.file.object_id
        return Place(rank=rank, box=box, file=name, object_id=object_id, start=start, size_bytes=entry.size_bytes)


class Running:
    """Statistics of numbers that come bit by bit. Variances are merged as Chan, Golub and LeVeque do (1979), so nothing cancels out."""

    def __init__(self) -> None:
        self._minimum: Any = None
        self._maximum: Any = None
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0
        self._nans = self._infinities = self._zeros = 0
        self._first: list[float | int | bool | str] = []

    def add(self, values: Array) -> None:
        self._first += map(_plain, values[: FIRST - len(self._first)].tolist())
        self._zeros += int(np.count_nonzero(values == 0))
        if values.dtype.kind in "fc":
            self._nans += int(np.count_nonzero(np.isnan(values)))
            self._infinities += int(np.count_nonzero(np.isinf(values)))
            values = values[np.isfinite(values)]
        if values.dtype.kind != "c" and len(values):
            self._add_finite(values)

    def _add_finite(self, values: Array) -> None:
        least, most = values.min().item(), values.max().item()
        self._minimum = least if self._minimum is None else min(self._minimum, least)
        self._maximum = most if self._maximum is None else max(self._maximum, most)
        doubles = values.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # what no double holds is told as None
            count, mean = len(doubles), float(doubles.mean())
            apart, total = mean - self._mean, self._count + count
            self._squares += float(np.square(doubles - mean).sum()) + apart * apart * self._count * count / total
            self._mean += apart * count / total
        self._count = total

    def result(self) -> dict[str, Any]:
        some = self._count > 0
        return {
            "minimum": self._minimum,
            "maximum": self._maximum,
            "mean": _finite(self._mean) if some else None,
            "std": _finite(math.sqrt(max(0.0, self._squares / self._count))) if some else None,
            "nans": self._nans,
            "infinities": self._infinities,
            "zeros": self._zeros,
            "first": tuple(self._first),
        }


def _finite(value: float) -> float | None:
    """None for a sum of squares that no double holds."""
    return value if math.isfinite(value) else None


def _plain(value: Any) -> float | int | bool | str:
    return value if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)) else str(value)
