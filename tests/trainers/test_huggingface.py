"""Hugging Face Trainer on the store: the example killed and resumed; the best model; the limit; what is refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptstore.errors import InvalidInput, NotFound
from tests.trainers.conftest import Place, differences, place_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of(tmp_path_factory.mktemp("huggingface"), "huggingface")


def trainer_on(place: Place, tmp_path: Path, checkpoints: str, **arguments: Any) -> Any:
    """Steps so long that the model changes a lot in each."""
    from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

    from ckptstore_client.trainers.huggingface import StoreTrainer

    torch.manual_seed(0)
    tokens = torch.randint(64, (16, 8))
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    given = {"max_steps": 4, "save_steps": 2, "learning_rate": 0.5, "report_to": [], "use_cpu": True, "disable_tqdm": True} | arguments
    options = TrainingArguments(output_dir=str(tmp_path / "out"), **given)
    return StoreTrainer(model, options, train_dataset=data, eval_dataset=data, checkpoints=checkpoints, store=place.store)


def test_killed_in_the_middle_and_started_again_it_ends_as_if_nothing_had_happened(place: Place) -> None:
    whole, resumed, left = place.whole_and_resumed("huggingface", killed_at=8)
    assert left and left[-1] < 8, "the kill left nothing to resume from"
    assert differences(whole, resumed) == []


def test_two_ranks_killed_in_the_middle_and_started_again_end_as_if_nothing_had_happened(place: Place) -> None:
    whole, resumed, left = place.whole_and_resumed("pair", killed_at=8, ranks=2)
    assert left and left[-1] < 8, "the kill left nothing to resume from"
    assert differences(whole, resumed) == []
    assert "model" in whole[0] and list(whole[1]) == ["random"], "the weights are stored once"


def test_the_best_model_is_loaded_at_the_end_and_nothing_is_on_disk(place: Place, tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False}
    trainer = trainer_on(place, tmp_path, "/best", eval_strategy="steps", eval_steps=2, save_total_limit=1, **best)
    trainer.train()
    path = trainer.state.best_model_checkpoint
    assert path in ("/best/checkpoint-2", "/best/checkpoint-4")
    assert place.store.stat(path).metadata["eval_loss"] == trainer.state.best_metric
    assert differences(dict(trainer.model.state_dict()), dict(place.store.load(path, only="model/*")["model"])) == []
    assert not list(tmp_path.glob("out/checkpoint-*"))
    policies = next(info.policies for info in place.store.retention.folders() if info.path == "/best")
    assert [policy.keep for policy in policies] == ["latest", "best"]

    again = trainer_on(place, tmp_path, "/best", eval_strategy="steps", eval_steps=2, **best | {"max_steps": 6})
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    assert again.state.best_model_checkpoint.startswith("/best/checkpoint-")


def test_a_signal_stops_it_after_one_more_checkpoint(place: Place, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    from ckptstore_client.trainers.huggingface import SaveWhenAsked

    class Signalled(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    trainer = trainer_on(place, tmp_path, "/asked", max_steps=50, save_steps=1000)
    asked = SaveWhenAsked(trainer, grace_s=60)
    for callback in (asked, Signalled()):
        trainer.add_callback(callback)
    trainer.train()
    assert trainer.state.global_step == 3
    assert asked.notice.kept.path == trainer.latest() == "/asked/checkpoint-3"
    assert asked.notice.kept.reached


def test_resuming_where_nothing_was_saved_is_refused(place: Place, tmp_path: Path) -> None:
    trainer = trainer_on(place, tmp_path, "/nothing")
    assert trainer.latest() is None
    with pytest.raises(NotFound):
        trainer.train(resume_from_checkpoint=True)


def test_pushing_folders_that_are_not_there_is_refused(place: Place, tmp_path: Path) -> None:
    trainer = trainer_on(place, tmp_path, "/pushed", hub_strategy="checkpoint")
    trainer.args.push_to_hub = True  # given to TrainingArguments it would make the repository at once, and there is no hub here
    with pytest.raises(InvalidInput, match="hub_strategy"):
        trainer.train()
