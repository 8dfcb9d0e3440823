"""Saved over some ranks, loaded over others: every rank gets, bit for bit, what a single process would have cut out of the whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from ckptstore_client.sharding import dtensors
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


placement = st.one_of(st.builds(Shard, st.integers(0, 2)), st.just(Replicate()))


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], Placements]:
    mesh_shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple).filter(lambda shape: torch.Size(shape).numel() <= 8))
    return mesh_shape, [draw(placement) for _ in mesh_shape]


_count = itertools.count()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(saved=layouts(), loaded=layouts(), sizes=st.lists(st.integers(1, 17), min_size=1, max_size=3), data=st.data())
def test_any_mesh_and_placements_can_be_saved_and_loaded_on_any_other(
    ranks: Ranks, folder: str, saved: Any, loaded: Any, sizes: list[int], data: st.DataObject
) -> None:
    whole = torch.randn(sizes)
    path = f"{folder}/{next(_count)}"

    def make(mesh_shape: tuple[int, ...], placements: Placements, empty: bool) -> list[Any]:
        count = torch.Size(mesh_shape).numel()
        return states_of(count, lambda _: {"x": dtensor(whole, mesh_of(mesh_shape), fitting(whole.shape, placements), empty=empty)})

    ranks.save(path, make(*saved, False))
    states = make(*loaded, True)
    state = states[data.draw(st.integers(0, len(states) - 1))]
    ranks[0].load(path, into=state)
    assert torch.equal(state["x"].to_local(), full(state["x"], whole))
    assert torch.equal(ranks[0].load(path)["x"], whole)
