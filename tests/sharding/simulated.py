"""Ranks of a job without a job: DTensors as each of N ranks would hold them, made one after the other in one process.

A process group of torch's own fake back end exists only while a mesh is made: a DTensor answers what its placements say without one. Saves
and loads name rank and world size, and share a token; no collective is ever called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import ckptstore
from ckptstore.boxes import Box
from ckptstore_client import PendingCheckpoint, Store
from ckptstore_tiers.checksums import BLOCK_BYTES


@contextmanager
def as_rank(rank: int, world_size: int) -> Iterator[None]:
    """Inside, torch.distributed says that this process is that rank."""
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def mesh_of(shape: Sequence[int]) -> DeviceMesh:
    return init_device_mesh("cpu", tuple(shape), mesh_dim_names=tuple(f"m{i}" for i in range(len(shape))))


def dtensor(whole: torch.Tensor, mesh: DeviceMesh, placements: Sequence[Any], *, empty: bool = False) -> DTensor:
    """This rank's share of `whole`, with its values, or (`empty`) to be loaded into."""
    if not whole.ndim:
        return DTensor.from_local(torch.full_like(whole, 77) if empty else whole.clone(), mesh, placements, run_check=False)
    made = DTensor.from_local(
        torch.empty(0, dtype=whole.dtype), mesh, placements, run_check=False, shape=whole.shape, stride=whole.contiguous().stride()
    )
    mine = whole[held_slices(made)]
    local = torch.full_like(mine, 77) if empty else mine.clone()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.contiguous().stride())


def held_slices(value: DTensor) -> tuple[slice, ...]:
    """What of the whole a rank has: cut as `torch.chunk` does it, FSDP's strided placements after the tensor parallelism on their right."""
    mesh, coordinate = value.device_mesh, value.device_mesh.get_coordinate()
    assert coordinate is not None
    rows = [torch.arange(length) for length in value.shape]
    in_order = list(range(mesh.ndim))
    for i in reversed(in_order) if any(hasattr(one, "split_factor") for one in value.placements) else in_order:
        dim = getattr(value.placements[i], "dim", None)
        if dim is not None:
            pieces = rows[dim].chunk(mesh.size(i))
            rows[dim] = pieces[coordinate[i]] if coordinate[i] < len(pieces) else rows[dim][:0]
    return tuple(slice(int(mine[0]), int(mine[-1]) + 1) if len(mine) else slice(0, 0) for mine in rows)


def states_of(world_size: int, make: Callable[[int], Any]) -> list[Any]:
    """What `make` gives each rank."""
    states = []
    for rank in range(world_size):
        with as_rank(rank, world_size):
            states.append(make(rank))
    return states


class Ranks:
    """The clients of a job's ranks; each has a session of its own, as processes have."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._stores: list[Store] = []

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for store in self._stores:
            store.close()

    def __getitem__(self, rank: int) -> Store:
        while len(self._stores) <= rank:
            self._stores.append(ckptstore.connect(home=self._home, start=False, group="simulated ranks"))
        return self._stores[rank]

    def save(self, path: str, states: Sequence[Any], *, wait: str | None = "nvme", **options: Any) -> list[PendingCheckpoint]:
        """All ranks save, one after the other; `options` that are lists are by rank."""
        pending = []
        for rank, state in enumerate(states):
            mine = {name: value[rank] if isinstance(value, list) else value for name, value in options.items()}
            pending.append(self[rank].save(path, state, rank=rank, world_size=len(states), **mine))
        if wait is not None:
            for one in pending:
                one.wait(wait, timeout_s=60)
        return pending


def full(value: Any, whole: torch.Tensor) -> torch.Tensor:
    """What of `whole` a loaded value should hold."""
    return whole[held_slices(value)] if isinstance(value, DTensor) else whole


def needed_blocks(store: Store, path: str, state: Any) -> set[tuple[int, int]]:
    """Blocks of the ranks' files, as rank and number, that hold a byte of the state's boxes, or a header that says where they are."""
    checkpoint, _ = store.open_sharded(path)
    needed: set[tuple[int, int]] = {(rank, 0) for rank in checkpoint.index.trees}
    with checkpoint:
        for name, value in state.items():
            held = held_slices(value)
            wanted = Box(tuple(rows.start for rows in held), tuple(rows.stop - rows.start for rows in held))
            for piece in checkpoint.index.tensor(name).pieces():
                with checkpoint.part(piece.rank) as part:
                    entry = part.header.tensors[piece.key]
                    ids = np.arange(entry.start, entry.end, 4).reshape(entry.shape) + part.header.data_start
                common = piece.box.common(wanted)
                if common is not None:
                    first = [inside - outside for inside, outside in zip(common.offset, piece.box.offset, strict=True)]
                    mine = ids[tuple(slice(start, start + size) for start, size in zip(first, common.size, strict=True))]
                    needed |= {(piece.rank, 0)} | {(piece.rank, int(block)) for block in np.unique(mine // BLOCK_BYTES)}
    return needed
