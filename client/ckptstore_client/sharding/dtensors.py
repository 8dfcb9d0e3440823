"""What does a DTensor say of itself, on one rank, about all ranks? A grid; without a collective, and without looking at a byte.

Mesh and placements say it: a dimension is cut by the sizes of the mesh dimensions that shard it, in their order (a strided placement,
as FSDP over tensor parallel makes it, is cut after those on its right that its split factor counts), as `torch.chunk` does it. Ranks that
hold the same, along replicated mesh dimensions, cut their common box once more along dimension 0 where it is large, so that each stores
and copies an equal part of it; small ones have an owner, chosen by the tensor's name.

What torch itself says of this rank's box (`__create_chunk_list__`, what its planner asks) is compared; where that differs, a placement
this module does not know, the rank speaks for itself alone. It is not asked about strided placements: where sizes do not divide, it tells
of other rows than those that FSDP gave the rank. Reads attributes only; thread-safe. Imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch.distributed.tensor import DTensor, Replicate

from ckptstore.boxes import Box, Grid, cut
from ckptstore.errors import NotStorable

#: From this size of a common box on, the ranks that hold it store a part each.
SPLIT_BYTES = 1 << 20
#: Why a tensor is refused that is not one box on each rank.
SCATTERED = "its placements scatter the rows that a rank has over the tensor"
SCATTERED_HINT = "redistribute it to Shard and Replicate placements first"


@dataclass(frozen=True)
class Holding:
    """What this rank has of a tensor: `held` is the box of its local tensor, `stored` the part of that which it is to store."""

    shape: tuple[int, ...]
    held: Box
    stored: Box | None
    grid: Grid | None  # None: only this rank's own part is known


class DTensorReader:
    """Holdings of one rank's DTensors; grids are made once for each mesh and placements."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._grids: dict[Any, Grid | None] = {}
        self._kept: list[Any] = []  # so that no id in a key is given to another mesh

    def holding(self, name: str, value: DTensor) -> Holding:
        """NotStorable for a partial tensor."""
        placements, mesh = value.placements, value.device_mesh
        if any(placement.is_partial() for placement in placements):
            raise NotStorable("a partial DTensor has no value yet", operation="save", subject=name, hint="redistribute it first")
        shape = tuple(value.shape)
        held = held_box(value)
        if held is None:
            raise NotStorable(SCATTERED, operation="save", subject=name, hint=SCATTERED_HINT)
        copies = prod(mesh.size(i) for i, placement in enumerate(placements) if isinstance(placement, Replicate))
        cells = prod(mesh.size(i) for i in range(mesh.ndim)) // max(copies, 1)
        split = copies > 1 and bool(shape) and prod(shape) * value.element_size() // cells >= SPLIT_BYTES
        split = split and shape[0] >= cells * copies
        choice = 0 if split else crc32(name.encode("utf-8", "surrogatepass")) % copies
        grid = self._grid(mesh, placements, len(shape), split, choice)
        if grid is None:
            return self._alone(value, shape, held, choice)
        if not split and self._rank not in grid.cell_of:
            return Holding(shape, held, None, grid)
        stored = grid.of_rank(self._rank, shape)
        expected = held if held.volume else None
        if split and stored is not None and expected is not None:
            expected = stored if _is_rows_of(stored, held) else Box((-1,) * len(shape), stored.size)
        if stored != expected and not (split and stored is None):
            return self._alone(value, shape, held, choice)
        return Holding(shape, held, stored, grid)

    def _alone(self, value: DTensor, shape: tuple[int, ...], held: Box, choice: int) -> Holding:
        mesh, coordinate = value.device_mesh, value.device_mesh.get_coordinate() or ()
        mine = 0
        for i, placement in enumerate(value.placements):
            if isinstance(placement, Replicate):
                mine = mine * mesh.size(i) + coordinate[i]
        return Holding(shape, held, held if mine == choice and held.volume else None, None)

    def _grid(self, mesh: Any, placements: Sequence[Any], dimensions: int, split: bool, choice: int) -> Grid | None:
        key = (id(mesh), tuple(placements), dimensions, split, choice)
        if key not in self._grids:
            self._kept.append(mesh)
            self._grids[key] = _make_grid(mesh.mesh.cpu().numpy(), placements, dimensions, split, choice)
        return self._grids[key]


def held_box(value: DTensor) -> Box | None:
    """Which box of the whole the local tensor is; None if its elements do not lie together."""
    shape, placements = tuple(value.shape), value.placements
    held = _cut_out(value.device_mesh, placements, shape) if any(map(_split_factor, placements)) else _as_torch_says(value)
    return held if held is None or held.volume else Box((0,) * len(shape), held.size)


def is_misplaced(value: Any) -> bool:
    """Whether a DTensor holds other rows than torch's planner believes."""
    if type(value) is not DTensor or not any(map(_split_factor, value.placements)):
        return False
    held, said = held_box(value), _as_torch_says(value)
    return held is None or held.size != said.size or (held.volume > 0 and held != said)


def _as_torch_says(value: DTensor) -> Box:
    (chunk,) = value.__create_chunk_list__()  # type: ignore[no-untyped-call]
    return Box(tuple(chunk.offsets), tuple(chunk.sizes))


def _split_factor(placement: Any) -> int:
    """Of a strided placement: into how many pieces those on its right had cut the dimension before. 0 for any other."""
    return int(getattr(placement, "split_factor", 0))


def _cut_out(mesh: Any, placements: Sequence[Any], shape: tuple[int, ...]) -> Box | None:
    """The box at this rank's place in the mesh, as it was cut; None if that is none."""
    cutting = _cutting(mesh.shape, placements, len(shape))
    if cutting is None:
        return None
    coordinate = mesh.get_coordinate() or (0,) * mesh.ndim
    bounds = []
    for length, of_one in zip(shape, cutting, strict=True):
        index = 0
        for i in of_one:
            index = index * mesh.size(i) + coordinate[i]
        bounds.append(cut(length, tuple(mesh.size(i) for i in of_one))[index : index + 2])
    return Box(tuple(start for start, _ in bounds), tuple(stop - start for start, stop in bounds))


def _cutting(sizes: Sequence[int], placements: Sequence[Any], dimensions: int) -> list[list[int]] | None:
    """The mesh dimensions that cut each dimension, the coarsest first. None: a placement that is not known, or leaves rows scattered."""
    cutting: list[list[int]] = [[] for _ in range(dimensions)]
    for i in reversed(range(len(placements))):
        if isinstance(placements[i], Replicate):
            continue
        dim = getattr(placements[i], "dim", None)
        if dim is None or dim >= dimensions:
            return None
        finer = cutting[dim % dimensions]
        before, factor = 0, max(_split_factor(placements[i]), 1) if sizes[i] > 1 else 1
        while before < len(finer) and prod(sizes[j] for j in finer[:before]) < factor:
            before += 1
        if prod(sizes[j] for j in finer[:before]) != factor:
            return None
        finer.insert(before, i)
    return cutting


def _is_rows_of(part: Box, whole: Box) -> bool:
    return part.offset[1:] == whole.offset[1:] and part.size[1:] == whole.size[1:] and part.common(whole) == part


def _make_grid(ranks: np.ndarray[Any, Any], placements: Sequence[Any], dimensions: int, split: bool, choice: int) -> Grid | None:
    cutting = _cutting(ranks.shape, placements, dimensions)
    if cutting is None:
        return None
    copying = [i for i, placement in enumerate(placements) if isinstance(placement, Replicate)]
    factors = [[ranks.shape[i] for i in of_one] for of_one in cutting]
    if split:
        cutting[0] += copying
        factors[0] += [ranks.shape[i] for i in copying]
        ordered = ranks.transpose([i for of_one in cutting for i in of_one])
    else:
        ordered = ranks.transpose([i for of_one in cutting for i in of_one] + copying)
        copies = prod(ranks.shape[i] for i in copying)
        ordered = ordered.reshape(-1, copies)[:, choice]
    return Grid(tuple(map(tuple, factors)), tuple(int(rank) for rank in ordered.reshape(-1)))


def local_tensors(values: Sequence[DTensor]) -> list[torch.Tensor]:
    """What this rank has of each, as plain tensors."""
    with torch.no_grad():
        return [value.to_local() for value in values]


def wanted_box(value: Any) -> tuple[Box | None, tuple[int, ...], torch.Tensor]:
    """Which box of the whole a DTensor holds here (None: its elements do not lie together), the shape of the whole, and its memory."""
    (local,) = local_tensors([value])
    return held_box(value), tuple(value.shape), local.detach()


def is_unreplicated(value: Any) -> bool:
    """Whether no other rank holds the same elements of a DTensor."""
    mesh = value.device_mesh
    return all(mesh.size(i) == 1 or not isinstance(placement, Replicate) for i, placement in enumerate(value.placements))
