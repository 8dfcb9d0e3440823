"""Rows that FSDP has cut after tensor parallelism had: what a rank has of them, also where the sizes do not divide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

from ckptstore.boxes import Box
from ckptstore.errors import InvalidInput, NotStorable
from ckptstore_client.sharding.dtensors import held_box
from tests.sharding.simulated import Ranks, as_rank, dtensor, mesh_of, states_of

#: FSDP's ranks, ranks of tensor parallelism, rows: torch's planner is wrong about the last ranks of the first two.
MESHES = [(3, 2, 13), (4, 2, 50257), (2, 3, 10), (4, 2, 5), (2, 2, 3)]


def by_fsdp(rows: int, mesh_shape: tuple[int, int], *, empty: bool = False) -> Any:
    """What each rank has of a layer, as FSDP itself made it."""

    def make(rank: int) -> dict[str, DTensor]:
        mesh = mesh_of(mesh_shape)
        layer = torch.nn.Linear(2, rows)
        with torch.no_grad():
            layer.weight.copy_(whole_of(rows))
        parallelize_module(layer, mesh["m1"], ColwiseParallel(), src_data_rank=None)
        fully_shard(layer, mesh=mesh["m0"])
        made: Any = layer.weight
        local = made.to_local().detach().clone()
        if empty:
            local.fill_(77)
        # torch keeps the mesh that it made for the first rank of this process
        shape, stride = made.shape, made.stride()
        return {"weight": DTensor.from_local(local, mesh, made.placements, run_check=False, shape=shape, stride=stride)}

    return states_of(mesh_shape[0] * mesh_shape[1], make)


def whole_of(rows: int) -> torch.Tensor:
    return torch.arange(2.0 * rows).reshape(rows, 2)


@pytest.mark.parametrize(("sharded", "split", "rows"), MESHES)
def test_what_fsdp_cut_is_stored_and_loaded_though_sizes_do_not_divide(
    ranks: Ranks, folder: str, sharded: int, split: int, rows: int
) -> None:
    states = by_fsdp(rows, (sharded, split))
    assert isinstance(states[0]["weight"].placements[0], _StridedShard)
    ranks.save(f"{folder}/x", states)
    assert torch.equal(ranks[0].load(f"{folder}/x")["weight"], whole_of(rows))
    for state, target in zip(states, by_fsdp(rows, (sharded, split), empty=True), strict=True):
        ranks[0].load(f"{folder}/x", into=target)
        assert torch.equal(target["weight"].to_local(), state["weight"].to_local())


def scattered(rank: int) -> dict[str, DTensor]:
    """Two ranks, of which each has every other pair of rows."""
    with as_rank(rank, 2):
        whole = torch.arange(8.0)
        return {"w": DTensor.from_local(whole[:4], mesh_of((2,)), [_StridedShard(0, split_factor=2)], run_check=False)}


def test_scattered_rows_are_refused_by_name_in_save_and_load(ranks: Ranks, folder: str) -> None:
    with pytest.raises(NotStorable, match=r"save w: its placements scatter the rows.*redistribute"):
        ranks[0].save(f"{folder}/x", scattered(0), rank=0, world_size=2)
    ranks.save(f"{folder}/y", states_of(2, lambda rank: {"w": dtensor(torch.arange(8.0), mesh_of((2,)), [Shard(0)])}))
    target = scattered(0)
    with pytest.raises(InvalidInput, match=r"load into w: its placements scatter the rows"):
        ranks[0].load(f"{folder}/y", into=target)
    assert torch.equal(target["w"].to_local(), torch.arange(4.0))


@st.composite
def strided(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Any]]:
    mesh_shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    cuts = st.builds(lambda factor: _StridedShard(0, split_factor=factor), st.integers(1, 9))
    placements = [draw(st.one_of(cuts, st.just(Shard(0)), st.just(Replicate()))) for _ in mesh_shape]
    assume(any(isinstance(placement, _StridedShard) for placement in placements))
    return mesh_shape, placements


def rows_of(coordinate: list[int], mesh_shape: tuple[int, ...], placements: list[Any], rows: list[int]) -> list[int]:
    """As torch defines it: from left to right, each piece of a strided placement's dimension is cut by itself."""
    for size, placement, at in zip(mesh_shape, placements, coordinate, strict=True):
        if isinstance(placement, Replicate):
            continue
        pieces = getattr(placement, "split_factor", 1)
        length, share = len(rows) // pieces, len(rows) // pieces // size
        rows = [row for piece in range(pieces) for row in rows[piece * length + at * share : piece * length + (at + 1) * share]]
    return rows


@given(strided())
def test_a_box_is_where_torch_has_the_rows_of_sizes_that_divide(cut: tuple[tuple[int, ...], list[Any]]) -> None:
    mesh_shape, placements = cut
    length, size = 1, torch.Size(mesh_shape).numel()
    for count, placement in zip(mesh_shape, placements, strict=True):
        length *= count * getattr(placement, "split_factor", 1)
    for rank in range(size):
        with as_rank(rank, size):
            mesh = mesh_of(mesh_shape)
            value = DTensor.from_local(torch.empty(0), mesh, placements, run_check=False, shape=torch.Size((length,)), stride=(1,))
            coordinate = mesh.get_coordinate()
            assert coordinate is not None
            rows, held = rows_of(list(coordinate), mesh_shape, placements, list(range(length))), held_box(value)
            if held is not None:
                assert held == Box((rows[0],), (len(rows),)) and rows == list(range(rows[0], rows[0] + len(rows)))


@pytest.mark.parametrize(
    ("mesh_shape", "placements"),
    [
        ((2, 3), [_StridedShard(0, split_factor=3), Shard(0)]),
        ((2, 3, 2), [_StridedShard(0, split_factor=6), _StridedShard(0, split_factor=2), Shard(0)]),
        ((2, 3, 2), [Replicate(), _StridedShard(0, split_factor=2), Shard(0)]),
        ((2, 2, 3), [_StridedShard(0, split_factor=3), Replicate(), Shard(0)]),
        ((1, 3), [_StridedShard(0, split_factor=3), Shard(0)]),
        ((3, 1), [_StridedShard(0, split_factor=1), Shard(0)]),
    ],
)
def test_cuts_from_the_right_to_the_left_are_known(ranks: Ranks, folder: str, mesh_shape: tuple[int, ...], placements: list[Any]) -> None:
    whole = torch.arange(37.0)
    states = states_of(torch.Size(mesh_shape).numel(), lambda rank: {"w": dtensor(whole, mesh_of(mesh_shape), placements)})
    ranks.save(f"{folder}/x", states)
    assert torch.equal(ranks[0].load(f"{folder}/x")["w"], whole)
