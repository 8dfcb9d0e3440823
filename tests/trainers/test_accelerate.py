"""Accelerate on the store: the example killed and resumed; hooks and their files; what is registered must match."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptstore.errors import InvalidInput
from tests.trainers.conftest import Place, differences, place_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of(tmp_path_factory.mktemp("accelerate"), "accelerate")


def accelerator_on(place: Place, checkpoints: str, **options: Any) -> Any:
    from ckptstore_client.trainers.accelerate import StoreAccelerator

    return StoreAccelerator(cpu=True, checkpoints=checkpoints, store=place.store, **options)


def test_killed_in_the_middle_and_started_again_it_ends_as_if_nothing_had_happened(place: Place) -> None:
    whole, resumed, left = place.whole_and_resumed("accelerate", killed_at=8)
    assert left and left[-1] < 8, "the kill left nothing to resume from"
    assert differences(whole, resumed) == []


def test_two_ranks_killed_in_the_middle_and_started_again_end_as_if_nothing_had_happened(place: Place) -> None:
    whole, resumed, left = place.whole_and_resumed("pair", killed_at=8, ranks=2)
    assert left and left[-1] < 8, "the kill left nothing to resume from"
    assert differences(whole, resumed) == []
    assert "models" in whole[0] and list(whole[1]) == ["own"], "the weights are stored once"
    assert differences(whole[0]["own"]["random"], whole[1]["own"]["random"]), "each rank has its own random numbers"


def test_hooks_save_models_their_own_way_and_find_their_files_again(place: Place) -> None:
    def save(models: list[Any], weights: list[Any], folder: str) -> None:
        weights.pop()
        Path(folder, "deep").mkdir()
        Path(folder, "deep", "own.bin").write_bytes(models[0].weight.detach().numpy().tobytes())

    found = []

    def load(models: list[Any], folder: str) -> None:
        models.pop()
        found.append(Path(folder, "deep", "own.bin").read_bytes())

    accelerator = accelerator_on(place, "/hooks")
    model = accelerator.prepare(torch.nn.Linear(3, 2))
    before = model.weight.detach().numpy().tobytes()
    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
    assert accelerator.save_state("/any/where/first") == "/hooks/first"
    accelerator.end_training()
    accelerator.load_state("first")
    assert found == [before]
    assert place.store.load("/hooks/first")["models"] == []


def test_numbers_are_names_and_go_on_after_a_restart(place: Place) -> None:
    from accelerate.utils import ProjectConfiguration

    def started() -> Any:
        configuration = ProjectConfiguration(project_dir=str(place.home), automatic_checkpoint_naming=True, total_limit=2)
        return accelerator_on(place, "/numbers", project_config=configuration)

    first = started()
    assert [first.save_state(), first.save_state()] == ["/numbers/checkpoint_0", "/numbers/checkpoint_1"]
    first.end_training()
    again = started()
    again.load_state()
    assert again.save_state() == "/numbers/checkpoint_2"
    again.end_training()
    assert [info.path for info in place.store.retention.folders()] == ["/numbers"]


def test_other_registered_objects_than_saved_are_refused_before_anything_is_loaded(place: Place) -> None:
    accelerator = accelerator_on(place, "/custom")
    model = accelerator.prepare(torch.nn.Linear(2, 2))
    accelerator.save_state("one")
    accelerator.end_training()
    with torch.no_grad():
        model.weight.zero_()
    accelerator.register_for_checkpointing(torch.optim.SGD(model.parameters()))
    with pytest.raises(InvalidInput, match="registered"):
        accelerator.load_state("one")
    assert not model.weight.any()


def test_a_save_without_a_name_is_refused(place: Place) -> None:
    with pytest.raises(InvalidInput, match="output_dir"):
        accelerator_on(place, "/nameless").save_state()
