"""DeepSpeed on the store: the example killed and resumed; its own words for its own objects; other engines; what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckptstore.errors import InvalidInput
from tests.trainers.conftest import Place, differences, place_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of(tmp_path_factory.mktemp("deepspeed"), "deepspeed")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of(tmp_path_factory.mktemp("stages"), "deepspeed_stage", scripts=Path(__file__).parent)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of(tmp_path_factory.mktemp("pipeline"), "deepspeed_pipeline", scripts=Path(__file__).parent)


def test_two_ranks_killed_in_the_middle_and_started_again_end_as_if_nothing_had_happened(place: Place) -> None:
    whole, resumed, left = place.whole_and_resumed("pair", killed_at=8, ranks=2)
    assert left and left[-1] < 8, "the kill left nothing to resume from"
    assert differences(whole, resumed) == []
    model, partition = "mp_rank_00_model_states.pt", "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
    assert [list(part["files"]) for part in whole] == [[model, partition.format(0)], [partition.format(1)]], "each file is stored once"
    assert whole[0]["files"][model]["seen"] == 12 * 8, "what the script gave"
    assert differences(whole[0]["random"], whole[1]["random"]), "each rank has its own random numbers"


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.soak), pytest.param(1, marks=pytest.mark.soak), 3])
def test_at_other_stages_of_zero_it_ends_as_if_nothing_had_happened(stages: Place, stage: int) -> None:
    whole, resumed, left = stages.whole_and_resumed(f"stage-{stage}", killed_at=8, ranks=2)
    assert left and left[-1] < 8, "the kill left nothing to resume from"
    assert differences(whole, resumed) == []


def test_a_pipeline_killed_in_the_middle_and_started_again_ends_as_if_nothing_had_happened(pipeline: Place) -> None:
    whole, resumed, left = pipeline.whole_and_resumed("pipeline", killed_at=8, ranks=2)
    assert left and left[-1] < 8, "the kill left nothing to resume from"
    assert differences(whole, resumed) == []
    assert whole[0]["files"]["layer_01-model_states.pt"] == {}


@pytest.mark.parametrize("way", ["zero_nvme_offload_optimizer", "load_universal_checkpoint"])
def test_ways_in_which_deepspeed_copies_files_by_itself_are_refused(place: Place, way: str) -> None:
    from ckptstore_client.trainers.deepspeed import StoreCheckpoints

    engine: Any = SimpleNamespace(zero_nvme_offload_optimizer=lambda: False, load_universal_checkpoint=lambda: False)
    setattr(engine, way, lambda: True)
    with pytest.raises(InvalidInput, match="copies files by itself"):
        StoreCheckpoints(engine, "/refused", store=place.store)
