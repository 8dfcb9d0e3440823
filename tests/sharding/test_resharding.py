"""Saved over some ranks, loaded over others: every rank gets, bit for bit, what a single process would have cut out of the whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from ckptstore_client import Part, Slice
from ckptstore_client.sharding import dtensors
from ckptstore_client.sharding.slices import Extent
from tests.sharding.simulated import Ranks, dtensor, full, mesh_of, states_of

Placements = Sequence[Any]
#: By name: sizes that divide and that do not, one row, none, a scalar, other dtypes.
SHAPES = {"w": (24, 8), "uneven": (7, 5), "row": (1, 9), "long": (53,), "cube": (5, 3, 8), "empty": (0, 4), "scalar": ()}
WHOLES = {
    "w": torch.randn(SHAPES["w"]),
    "uneven": torch.randn(SHAPES["uneven"]).bfloat16(),
    "row": torch.randn(SHAPES["row"], dtype=torch.float64),
    "long": torch.randint(-99, 99, SHAPES["long"]),
    "cube": torch.randn(SHAPES["cube"]),
    "empty": torch.empty(SHAPES["empty"]),
    "scalar": torch.tensor(3.5),
}
#: name → mesh, placements
LAYOUTS: dict[str, tuple[tuple[int, ...], Placements]] = {
    "fsdp": ((8,), [Shard(0)]),
    "tp columns": ((8,), [Shard(1)]),
    "hsdp": ((2, 4), [Replicate(), Shard(0)]),
    "fsdp + tp rows": ((4, 2), [_StridedShard(0, split_factor=2), Shard(0)]),
    "fsdp + tp columns": ((4, 2), [Shard(0), Shard(1)]),
    "replicated": ((8,), [Replicate()]),
}
TARGETS: dict[str, tuple[tuple[int, ...], Placements]] = {
    "1 fsdp": ((1,), [Shard(0)]),
    "2 tp columns": ((2,), [Shard(1)]),
    "3 fsdp": ((3,), [Shard(0)]),
    "6 fsdp + tp": ((3, 2), [Shard(0), Shard(1)]),
    "8 hsdp": ((4, 2), [Replicate(), Shard(0)]),
    "8 fsdp": ((8,), [Shard(0)]),
}


def fitting(shape: tuple[int, ...], placements: Placements) -> Placements:
    """The placements, with what a tensor of fewer dimensions can not be sharded by as replicated."""
    return [one if getattr(one, "dim", -1) < len(shape) else Replicate() for one in placements]


def state_on(mesh_shape: tuple[int, ...], placements: Placements, *, empty: bool = False) -> Callable[[int], dict[str, Any]]:
    def make(rank: int) -> dict[str, Any]:
        mesh = mesh_of(mesh_shape)
        model = {name: dtensor(whole, mesh, fitting(whole.shape, placements), empty=empty) for name, whole in WHOLES.items()}
        moments = {name: {"exp_avg": dtensor(whole, mesh, fitting(whole.shape, placements), empty=empty)} for name, whole in WHOLES.items()}
        return {"model": model, "optimizer": {"state": moments, "step": 0 if empty else 12}}

    return make


def check(state: dict[str, Any]) -> None:
    for name, whole in WHOLES.items():
        for value in (state["model"][name], state["optimizer"]["state"][name]["exp_avg"]):
            local = value.to_local() if isinstance(value, DTensor) else value
            assert local.dtype == whole.dtype and torch.equal(local, full(value, whole)), name
    assert state["optimizer"]["step"] == 12


@pytest.fixture(autouse=True)
def small_pieces_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that hold the same store a part each, as they do with large tensors."""
    monkeypatch.setattr(dtensors, "SPLIT_BYTES", 64)


@pytest.mark.parametrize(
    ("layout", "targets"),
    [
        ("fsdp", list(TARGETS)),
        ("tp columns", ["2 tp columns", "3 fsdp"]),
        ("hsdp", ["1 fsdp", "8 fsdp"]),
        ("fsdp + tp rows", ["3 fsdp", "6 fsdp + tp"]),
        ("fsdp + tp columns", ["2 tp columns", "8 hsdp"]),
        ("replicated", ["3 fsdp"]),
    ],
)
def test_saved_on_eight_ranks_and_loaded_on_others_is_bitwise_equal(ranks: Ranks, folder: str, layout: str, targets: list[str]) -> None:
    path = f"{folder}/x"
    ranks.save(path, states_of(8, state_on(*LAYOUTS[layout])))
    check(ranks[0].load(path))
    for mesh_shape, placements in map(TARGETS.__getitem__, targets):
        world_size = torch.Size(mesh_shape).numel()
        for state in states_of(world_size, state_on(mesh_shape, placements, empty=True)):
            check(ranks[0].load(path, into=state))


# --- any job into any other -------------------------------------------------------------------------------------------

#: Rows of the experts' tensor.
EXPERT_ROWS = 12


@dataclass(frozen=True)
class Cut:
    """How a job holds its state. Its ranks are `stages` meshes, each with the layers of its stage; experts are cut over all of them."""

    stages: int
    mesh_shape: tuple[int, ...]
    placements: Placements
    expert_edges: tuple[int, ...]  # row at which each group begins, and the last ends; the groups come again and again, rank by rank

    @property
    def world_size(self) -> int:
        return self.stages * torch.Size(self.mesh_shape).numel()

    def layers(self, rank: int, count: int) -> list[int]:
        return [layer for layer in range(count) if layer * self.stages // count == rank * self.stages // self.world_size]

    def mesh(self, rank: int) -> DeviceMesh:
        size = self.world_size // self.stages
        return DeviceMesh("cpu", torch.arange(size).reshape(self.mesh_shape) + rank // size * size)

    def experts(self, rank: int) -> tuple[slice, Extent]:
        groups = len(self.expert_edges) - 1
        replica = (rank // groups, self.world_size // groups)
        first, last = self.expert_edges[rank % groups : rank % groups + 2]
        if all(stop - start == last - first for start, stop in pairwise(self.expert_edges)):
            return slice(first, last), Part(0, rank % groups, groups, replica)
        return slice(first, last), Slice((first, 0), (EXPERT_ROWS, 3), replica)


@dataclass(frozen=True)
class Whole:
    """The state as a single process would hold it."""

    layers: list[torch.Tensor]
    experts: torch.Tensor

    @classmethod
    def of(cls, sizes: Sequence[Sequence[int]]) -> Whole:
        return cls([torch.randn(*size) for size in sizes], torch.randn(EXPERT_ROWS, 3))

    def held(self, cut: Cut, rank: int, *, empty: bool = False) -> dict[str, Any]:
        mesh = cut.mesh(rank)
        model, moments = {}, {}
        for layer in cut.layers(rank, len(self.layers)):
            tensor, name = self.layers[layer], f"layer.{layer}"
            model[name], moment = (
                dtensor(value, mesh, fitting(tensor.shape, cut.placements), empty=empty) for value in (tensor, tensor * 2)
            )
            moments[name] = {"exp_avg": moment, "step": 7}
        rows, _ = cut.experts(rank)
        model["experts"] = torch.full_like(self.experts[rows], 77) if empty else self.experts[rows].clone()
        return {"model": model, "optimizer": {"state": moments, "lr": 0.5}}

    def check(self, state: dict[str, Any], rows: slice = slice(None)) -> None:
        """Bit for bit, whichever part of it this is."""
        for name, value in state["model"].items():
            if name == "experts":
                assert torch.equal(value, self.experts[rows])
                continue
            whole, moment = self.layers[int(name.removeprefix("layer."))], state["optimizer"]["state"][name]["exp_avg"]
            for local, expected in ((value, full(value, whole)), (moment, full(moment, whole * 2))):
                assert torch.equal(local.to_local() if isinstance(local, DTensor) else local, expected)
        assert state["optimizer"]["lr"] == 0.5


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    stages = draw(st.integers(1, 3))
    shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
    mesh_shape = draw(shapes.filter(lambda shape: stages * torch.Size(shape).numel() <= 8))
    placements = [draw(st.one_of(st.builds(Shard, st.integers(0, 2)), st.just(Replicate()))) for _ in mesh_shape]
    if len(mesh_shape) == 2 and draw(st.booleans()):  # as FSDP cuts rows that tensor parallelism has cut before
        placements = [_StridedShard(0, split_factor=mesh_shape[1]), Shard(0)]
    world_size = stages * torch.Size(mesh_shape).numel()
    groups = draw(st.sampled_from([count for count in range(1, world_size + 1) if world_size % count == 0]))
    if EXPERT_ROWS % groups == 0 and draw(st.booleans()):
        edges = list(range(0, EXPERT_ROWS + 1, EXPERT_ROWS // groups))
    else:
        inner = draw(st.lists(st.integers(1, EXPERT_ROWS - 1), min_size=groups - 1, max_size=groups - 1, unique=True))
        edges = [0, *sorted(inner), EXPERT_ROWS]
    return Cut(stages, mesh_shape, placements, tuple(edges))


sizes_of_a_layer = st.lists(st.integers(1, 17), min_size=1, max_size=3)
_count = itertools.count()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(saved=cuts(), loaded=cuts(), sizes=st.lists(sizes_of_a_layer, min_size=3, max_size=4), data=st.data())
def test_any_job_is_loaded_by_any_other_and_by_a_single_process(
    ranks: Ranks, folder: str, saved: Cut, loaded: Cut, sizes: list[list[int]], data: st.DataObject
) -> None:
    """Meshes, placements, pipeline stages, experts in parts and slices, and the optimizer's state of all that."""
    whole, path = Whole.of(sizes), f"{folder}/{next(_count)}"
    shards = [{"model/experts": saved.experts(rank)[1]} for rank in range(saved.world_size)]
    ranks.save(path, states_of(saved.world_size, lambda rank: whole.held(saved, rank)), shards=shards)
    states = states_of(loaded.world_size, lambda rank: whole.held(loaded, rank, empty=True))
    rank = data.draw(st.integers(0, len(states) - 1))
    rows, extent = loaded.experts(rank)
    ranks[0].load(path, into=states[rank], shards={"model/experts": extent})
    whole.check(states[rank], rows)
    alone = ranks[0].load(path)
    whole.check(alone)
    assert len(alone["model"]) == len(sizes) + 1
