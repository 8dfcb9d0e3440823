"""Lightning on the store: the example killed and resumed; the best checkpoint; what save_top_k lets go; what is refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptstore.errors import InvalidInput, NotStorable
from tests.trainers.conftest import Place, differences, place_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of(tmp_path_factory.mktemp("lightning"), "lightning")


def test_killed_in_the_middle_and_started_again_it_ends_as_if_nothing_had_happened(place: Place) -> None:
    whole, resumed, left = place.whole_and_resumed("lightning", killed_at=8)
    assert left and left[-1] < 8, "the kill left nothing to resume from"
    assert differences(whole, resumed) == []


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of(tmp_path_factory.mktemp("ddp"), "lightning_ddp", scripts=Path(__file__).parent)


def test_two_ranks_killed_in_the_middle_and_started_again_end_as_if_nothing_had_happened(pair: Place) -> None:
    pair.run("/whole", ranks=2)
    pair.run("/killed", killed_at=8, ranks=2)
    left = pair.steps("/killed")
    assert left and left[-1] < 8, "the kill left nothing to resume from"
    pair.run("/killed", ranks=2)
    whole, resumed = (pair.store.load(f"{folder}/@latest") for folder in ("/whole", "/killed"))
    assert pair.steps("/killed") == pair.steps("/whole")
    assert differences(whole, resumed) == []
    of_ranks = whole["callbacks"]["RandomStates"]["ranks"]
    assert len(of_ranks) == 2 and differences(*of_ranks), "each rank has its own random numbers"


def test_a_signal_stops_it_after_one_more_checkpoint(place: Place, tmp_path: Path) -> None:
    from lightning.pytorch import Trainer
    from lightning.pytorch.demos.boring_classes import BoringModel

    from ckptstore_client.trainers.lightning import SaveWhenAsked, StoreCheckpointIO

    class Signalled(BoringModel):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            if batch_idx == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().training_step(batch, batch_idx)

    checkpoints = StoreCheckpointIO("/asked", store=place.store)
    asked = SaveWhenAsked(checkpoints, grace_s=60)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        plugins=[checkpoints], callbacks=[asked], max_steps=50, limit_val_batches=0, accelerator="cpu", default_root_dir=tmp_path, **quiet
    )
    trainer.fit(Signalled())
    assert trainer.global_step == 3
    assert asked.notice is not None and asked.notice.kept is not None
    assert asked.notice.kept.path == checkpoints.latest() == "/asked/asked-step=3.ckpt"
    assert asked.notice.kept.reached


def fitted(place: Place, tmp_path: Path, checkpoints: str) -> Any:
    """A trainer that has saved at each of four steps, and keeps the best, by a loss that grows."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.demos.boring_classes import BoringModel

    from ckptstore_client.trainers.lightning import StoreCheckpointIO

    class Growing(BoringModel):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            self.log("loss", float(batch_idx))
            return super().training_step(batch, batch_idx)

    trainer = Trainer(
        plugins=[StoreCheckpointIO(checkpoints, store=place.store)],
        callbacks=[ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, monitor="loss", save_top_k=1)],
        max_steps=4,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Growing())
    return trainer


def test_the_best_checkpoint_stays_alone_and_is_found_by_its_name(place: Place, tmp_path: Path) -> None:
    trainer = fitted(place, tmp_path, "/top")
    entries = list(place.store.ls("/top"))
    assert [(entry.name, entry.step, entry.metadata["loss"]) for entry in entries] == [("epoch=0-step=1.ckpt", 1, 0.0)]
    assert not list(tmp_path.iterdir()), "something was written beside the store"
    trainer.test(ckpt_path="best", verbose=False)
    loaded = place.store.load("/top/@latest")["state_dict"]
    assert differences(dict(trainer.lightning_module.state_dict()), dict(loaded)) == []


def test_objects_are_refused_by_place(place: Place) -> None:
    from ckptstore_client.trainers.lightning import StoreCheckpointIO

    checkpoint = {"state_dict": {}, "hyper_parameters": {"loss_fn": torch.nn.MSELoss()}}
    with pytest.raises(NotStorable, match="hyper_parameters/loss_fn"):
        StoreCheckpointIO("/refused", store=place.store).save_checkpoint(checkpoint, "one.ckpt")


def test_storage_options_are_refused(place: Place) -> None:
    from ckptstore_client.trainers.lightning import StoreCheckpointIO

    with pytest.raises(InvalidInput, match="storage_options"):
        StoreCheckpointIO("/refused", store=place.store).save_checkpoint({}, "one.ckpt", storage_options={"a": 1})
