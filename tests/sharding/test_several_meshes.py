"""A tensor that lies whole on each of several meshes, such as a norm beside layers that are split, is stored and loaded as one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard

from ckptstore.boxes import Grid
from ckptstore.errors import AttemptAborted, InvalidInput, NotFound
from ckptstore.plain_leaves import Leaves, write_leaves
from ckptstore.shard_merging import RankDocuments, merge
from ckptstore.shards import ShardTable, read_index, read_plan_text, write_table
from tests.sharding.simulated import Ranks, dtensor, full, mesh_of, states_of

WEIGHT, NORM, EMBEDDING = torch.randn(12, 8), torch.randn(6), torch.randn(5, 4)


def split(rank: int, data: int, tensor: int, *, empty: bool = False, lacks_norm: int | None = None) -> dict[str, Any]:
    """A weight on both dimensions of a mesh, a norm on the first alone: each of the second's ranks belongs to a mesh of its own."""
    both = mesh_of((data, tensor))
    first = DeviceMesh("cpu", [row * tensor + rank % tensor for row in range(data)])
    state = {"weight": dtensor(WEIGHT, both, [Shard(0), Shard(1)], empty=empty)}
    if rank != lacks_norm:
        state["norm"] = dtensor(NORM, first, [Shard(0)], empty=empty)
    return state


@pytest.mark.parametrize(("data", "tensor"), [(2, 2), (4, 1), (1, 4), (3, 2)])
def test_a_norm_that_only_data_parallel_ranks_shard_goes_through_every_other_mesh(
    ranks: Ranks, folder: str, data: int, tensor: int
) -> None:
    ranks.save(f"{folder}/x", states_of(4, lambda rank: split(rank, 2, 2)))
    whole = ranks[0].load(f"{folder}/x")
    assert torch.equal(whole["norm"], NORM) and torch.equal(whole["weight"], WEIGHT)
    for rank, into in enumerate(states_of(data * tensor, lambda rank: split(rank, data, tensor, empty=True))):
        ranks[rank].load(f"{folder}/x", into=into)
        for name, saved in (("norm", NORM), ("weight", WEIGHT)):
            assert torch.equal(into[name].to_local(), full(into[name], saved)), (rank, name)


def test_stages_of_a_pipeline_that_mean_different_tensors_by_one_name_are_refused(ranks: Ranks, folder: str) -> None:
    def stage(rank: int) -> dict[str, Any]:
        mesh = DeviceMesh("cpu", [rank])
        return {f"layer{rank}": dtensor(WEIGHT, mesh, [Replicate()]), "head": dtensor(EMBEDDING + rank, mesh, [Replicate()])}

    pending = ranks.save(f"{folder}/x", states_of(2, stage), wait=None)
    with pytest.raises(AttemptAborted, match=r"'head'.*ranks \[0\] and ranks \[1\] each have all of it"):
        pending[0].wait("nvme", timeout_s=60)
    with pytest.raises(NotFound):
        ranks[0].stat(f"{folder}/x")


@pytest.mark.parametrize("silent", [2, 3])
def test_each_mesh_must_have_all_of_it(ranks: Ranks, folder: str, silent: int) -> None:
    pending = ranks.save(f"{folder}/x", states_of(4, lambda rank: split(rank, 2, 2, lacks_norm=silent)), wait=None)
    with pytest.raises(AttemptAborted, match=f"'norm': rank {silent} should have"):
        pending[0].wait("nvme", timeout_s=60)
    with pytest.raises(NotFound):
        ranks[0].stat(f"{folder}/x")


# --- merging -------------------------------------------------------------------------------------------------------------------------


def merged(*grids: Grid) -> ShardTable:
    """Of as many ranks, whose plans say that the tensor lies in these, and another one on all ranks."""
    everywhere = Grid(((len(grids),),), tuple(range(len(grids))))
    plans = [write_table({"w": ["F32", [4], 0], "all": ["F32", [4], 1]}, [grid, everywhere]) for grid in grids]
    leaves = write_leaves(Leaves({}, {}))
    documents = [RankDocuments(rank, str(plan), "leaves") for rank, plan in enumerate(plans)]
    return read_index(merge(documents, len(grids), {str(plan): read_plan_text(plan) for plan in plans}, {"leaves": leaves}))


def test_the_copy_of_the_lowest_ranks_is_read_whoever_is_asked_first() -> None:
    high, low = Grid(((2,),), (3, 1)), Grid(((2,),), (0, 2))
    assert merged(low, high, low, high).tensor("w").grid == low


@pytest.mark.parametrize("other", [Grid(((2,),), (1, 0)), Grid(((2,),), (1, 2)), Grid(((1,),), (1,))])
def test_meshes_that_have_a_rank_in_common_are_no_copies(other: Grid) -> None:
    mine = Grid(((2,),), (0, 1))
    with pytest.raises(InvalidInput, match=r"'w'.*disagree on how"):
        merged(mine, other, other)
