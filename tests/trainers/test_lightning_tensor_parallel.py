"""Lightning's ModelParallelStrategy on a mesh of two dimensions: killed and resumed on as many ranks, and on fewer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainers.conftest import Place, differences, place_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of(tmp_path_factory.mktemp("tensor-parallel"), "tensor_parallel", scripts=Path(__file__).parent)


def test_split_and_sharded_over_four_ranks_it_ends_as_if_nothing_had_happened(place: Place) -> None:
    whole, resumed, left = place.whole_and_resumed("four", killed_at=8, ranks=4)
    assert left and left[-1] < 8, "the kill left nothing to resume from"
    assert differences(whole, resumed) == []
    weights = whole[0]["state_dict"]
    assert [tuple(weights[f"layers.{n}.weight"].shape) for n in (0, 1, 3)] == [(16, 9), (16,), (9, 16)], "whole, whatever the mesh"
    moments = whole[0]["optimizer_states"][0]["state"]
    assert moments["layers.3.weight"]["exp_avg"].shape == (9, 16)


def test_what_four_ranks_saved_goes_on_with_two_that_only_split(place: Place) -> None:
    place.run("/fewer", killed_at=8, ranks=4)
    left = place.steps("/fewer")
    assert left, "the kill left nothing to resume from"
    before = place.store.load("/fewer/@latest")["state_dict"]
    place.run("/fewer", ranks=2)
    assert place.steps("/fewer") == [2, 4, 6, 8, 10, 12]
    assert place.store.stat("/fewer/@latest").world_size == 2
    assert differences(before, place.store.load("/fewer/@latest")["state_dict"]), "it trained on"
