"""Which rank holds which part of a tensor that is spread over ranks? What each rank says of it, and `shards.json`, which says it of all.

A rank that saves sharded state has a *plan* in its file's header, under the metadata key `ckptstore.shards`:

    {"format": "ckptstore-shards/1", "grids": [[[[factor, …], …], [rank, …]], …],
     "tensors": {name: [dtype, [n, …], grid or boxes], …}, "expect": [pattern, …]}

`name` is a tensor's place in the state, its shape is that of the whole. A number names a grid (`boxes.Grid`), which says who holds what on
all ranks: so the plans of ranks that hold pieces of the same tensors are the same text, and are kept and checked once, however many the
ranks are. Where only the rank itself knows, it says what it holds: `boxes` is [[rank, [offset, …], [size, …], key], …]. In a rank's file, a
piece has the key `name`, or that of its box. Tensors of the file that its plan does not name, and all other leaves, are *plain*.

`shards.json`, made when the checkpoint is published, has the same members merged over all ranks, and these:

    "world_size": n
    "trees": [rank, …]                 ranks whose part documents have, together, every place of the state
    "per_rank": {place: [rank, …], …}  plain leaves that are not equal on all ranks that have them
    "copies": {key: [[dtype, [n, …], home, [rank, …]], …], …}  where there are such: plain tensors of `per_rank` that these ranks' files
                                       lack, because the file of the rank `home` has the same
    (plain tensors that are equal stand in "tensors", in a box of one of their ranks)

It grows with the tensors and with the ranks, not with their product, where tensors are described by grids. Pure functions over values; a
document from outside is refused by name (InvalidInput) where it breaks the grammar.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import orjson

from ckptstore.boxes import Box, Grid
from ckptstore.errors import InvalidInput
from ckptstore.safetensors_format import DTYPE_BITS, MAX_DIMENSIONS, Header, TensorEntry, tensor_size_bytes

SHARDS_KEY = "ckptstore.shards"
SHARDS_FORMAT = "ckptstore-shards/1"
MAX_SHARDS_BYTES = 1 << 30
#: Cells of one grid, and so ranks that one tensor may be spread over.
MAX_CELLS = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor, and where it is: in the file of `rank`, under `key`."""

    rank: int
    box: Box
    key: str


@dataclass(frozen=True, slots=True)
class Spread:
    """A tensor that is spread over ranks: by a grid, or as these pieces."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    grid: Grid | None
    boxes: tuple[Piece, ...] = ()

    def pieces(self, wanted: Box | None = None) -> Iterator[Piece]:
        """Those that have something of `wanted`, none of them empty."""
        if self.grid is not None:
            yield from (Piece(rank, box, self.name) for rank, box in self.grid.cells(self.shape, wanted))
            return
        yield from (piece for piece in self.boxes if piece.box.volume and (wanted is None or piece.box.common(wanted) is not None))

    def of_rank(self, rank: int) -> list[Piece]:
        if self.grid is None:
            return [piece for piece in self.boxes if piece.rank == rank and piece.box.volume]
        box = self.grid.of_rank(rank, self.shape)
        return [] if box is None else [Piece(rank, box, self.name)]


@dataclass
class ShardTable:
    """A plan or an index. Tensors are read when they are asked for: there may be 100,000."""

    grids: list[Grid]
    raw: dict[str, Any]
    expect: list[str] = field(default_factory=list)
    world_size: int = 0
    trees: list[int] = field(default_factory=list)
    per_rank: dict[str, list[int]] = field(default_factory=dict)
    #: rank → key → the rank whose file has this rank's own plain tensor, and the tensor
    copies: dict[int, dict[str, tuple[int, TensorEntry]]] = field(default_factory=dict)

    def __contains__(self, name: object) -> bool:
        return name in self.raw

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def tensor(self, name: str) -> Spread:
        return _spread(name, self.raw[name], self.grids)

    def tensors(self) -> Iterator[Spread]:
        return map(self.tensor, self.raw)


# --- writing ----------------------------------------------------------------------------------------------------------


def write_table(
    tensors: Mapping[str, Any], grids: Sequence[Grid], expect: Sequence[str] = (), more: Mapping[str, Any] | None = None
) -> bytes:
    """`tensors` are of the grammar's form: name → [dtype, shape, number of a grid or list of boxes]."""
    document = {
        "format": SHARDS_FORMAT,
        "grids": [[[list(factors) for factors in grid.factors], list(grid.ranks)] for grid in grids],
        "tensors": dict(tensors),
        "expect": list(expect),
    }
    return orjson.dumps(document | dict(more or {}))


def written_boxes(pieces: Iterable[Piece]) -> list[list[Any]]:
    return [[piece.rank, list(piece.box.offset), list(piece.box.size), piece.key] for piece in pieces]


# --- reading ----------------------------------------------------------------------------------------------------------


def read_plan(header: Header) -> ShardTable | None:
    """The plan in a rank's file; None if its state is not sharded."""
    text = header.metadata.get(SHARDS_KEY)
    return None if text is None else read_plan_text(text)


def read_plan_text(text: str | bytes) -> ShardTable:
    """A plan."""
    return _read(text, frozenset({"format", "grids", "tensors", "expect"}))


def read_index(data: bytes | memoryview) -> ShardTable:
    """`shards.json`."""
    if len(data) > MAX_SHARDS_BYTES:
        raise _broken(f"it has {len(data)} bytes; {MAX_SHARDS_BYTES} are allowed")
    members = frozenset({"format", "grids", "tensors", "expect", "world_size", "trees", "per_rank"})
    return _read(data, members, optional=frozenset({"copies"}))


def _read(text: str | bytes | memoryview, members: frozenset[str], optional: frozenset[str] = frozenset()) -> ShardTable:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _broken(f"it is no JSON: {str(error)[:120]}") from error
    if not isinstance(document, dict) or document.keys() - optional != members or document["format"] != SHARDS_FORMAT:
        raise _broken(f"it is no document of format {SHARDS_FORMAT}")
    grids, tensors, expect = document["grids"], document["tensors"], document["expect"]
    if not isinstance(grids, list) or not isinstance(tensors, dict) or not _is_list_of(expect, str):
        raise _broken("it needs a list of grids, a table of tensors and a list of patterns")
    table = ShardTable([_grid(grid) for grid in grids], tensors, expect)
    if "world_size" in document:
        table.world_size, table.trees, table.per_rank = document["world_size"], document["trees"], document["per_rank"]
        if not _is_count(table.world_size) or not _is_list_of(table.trees, int) or not isinstance(table.per_rank, dict):
            raise _broken("world_size, trees or per_rank are none")
        _read_copies(document.get("copies", {}), table.copies)
    return table


def _read_copies(value: Any, copies: dict[int, dict[str, tuple[int, TensorEntry]]]) -> None:
    if not isinstance(value, dict) or not all(isinstance(groups, list) for groups in value.values()):
        raise _broken("its copies are no table")
    for key, groups in value.items():
        for group in groups:
            if not isinstance(group, list) or len(group) != 4 or not _is_count(group[2]) or not _is_list_of(group[3], int):
                raise _broken("a copy is no dtype, shape, rank and ranks", key)
            spread = _spread(key, [*group[:2], []], [])
            entry = TensorEntry(key, spread.dtype, spread.shape, 0, tensor_size_bytes(spread.dtype, spread.shape))
            for rank in group[3]:
                copies.setdefault(rank, {})[key] = group[2], entry


def _grid(value: Any) -> Grid:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], list) or not _is_list_of(value[1], int):
        raise _broken("a grid is no pair of factors and ranks")
    factors, ranks = value
    if not all(_is_list_of(of_one, int) and all(factor > 0 for factor in of_one) for of_one in factors) or len(factors) > MAX_DIMENSIONS:
        raise _broken("the factors of a grid are none")
    grid = Grid(tuple(map(tuple, factors)), tuple(ranks))
    if len(ranks) > MAX_CELLS or min(ranks, default=0) < 0 or not grid.is_one_box_a_rank():
        raise _broken("a grid has not one rank for each of its cells")
    return grid


def _spread(name: str, value: Any, grids: Sequence[Grid]) -> Spread:
    if not isinstance(value, list) or len(value) != 3:
        raise _broken("it is no dtype, shape and distribution", name)
    dtype, shape, where = value
    if dtype not in DTYPE_BITS or not _is_list_of(shape, int) or len(shape) > MAX_DIMENSIONS or not all(map(_is_count, shape)):
        raise _broken("dtype and shape are none", name)
    if type(where) is int:
        if not 0 <= where < len(grids) or len(grids[where].factors) != len(shape):
            raise _broken("its grid is none for its dimensions", name)
        return Spread(name, dtype, tuple(shape), grids[where])
    if not isinstance(where, list):
        raise _broken("it has neither a grid nor boxes", name)
    return Spread(name, dtype, tuple(shape), None, tuple(_piece(name, piece, len(shape)) for piece in where))


def _piece(name: str, value: Any, dimensions: int) -> Piece:
    good = isinstance(value, list) and len(value) == 4 and _is_count(value[0]) and isinstance(value[3], str)
    if not good or not all(_is_list_of(item, int) and len(item) == dimensions and all(map(_is_count, item)) for item in value[1:3]):
        raise _broken("a box is no rank, offset, size and key", name)
    return Piece(value[0], Box(tuple(value[1]), tuple(value[2])), value[3])


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _broken(why: str, name: str | None = None) -> InvalidInput:
    return InvalidInput(why, operation="read shards", subject=None if name is None else repr(name[:120]))


# --- a rank's file against its plan -----------------------------------------------------------------------------------


def check_file_has(header: Header, plan: ShardTable, rank: int) -> set[str]:
    """The keys of the file that are pieces of tensors; InvalidInput unless they are exactly those that the plan gives this rank."""
    keys: set[str] = set()
    for tensor in plan.tensors():
        for piece in tensor.of_rank(rank):
            entry = header.tensors.get(piece.key)
            if entry is None or entry.dtype != tensor.dtype or entry.shape != piece.box.size or piece.key in keys:
                raise _broken(f"the file has not the box {piece.box} of it that its plan says", tensor.name)
            keys.add(piece.key)
        strangers = [piece.rank for piece in tensor.boxes if piece.rank != rank]
        if strangers:
            raise _broken(f"rank {rank} says what rank {strangers[0]} has", tensor.name)
    return keys


def with_spread_tensors(header: Header, table: ShardTable) -> Header:
    """The header as if whole tensors were in the file, for what reads the part document, which names them."""
    whole = {
        tensor.name: TensorEntry(tensor.name, tensor.dtype, tensor.shape, 0, prod(tensor.shape) * DTYPE_BITS[tensor.dtype] // 8)
        for tensor in table.tensors()
    }
    return Header(header.tensors | whole, header.metadata, header.data_start)

