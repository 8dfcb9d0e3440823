"""Lightning is told to end in the middle of what it accumulates: it saves where the optimizer has stepped, and nowhere else."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptstore
from tests.daemon_process import DaemonProcess, write_config


@pytest.mark.parametrize("batch", [0, 2, 3])
def test_a_signal_in_the_middle_of_an_accumulation_waits_for_its_step(tmp_path: Path, batch: int) -> None:
    from lightning.pytorch import Trainer
    from lightning.pytorch.demos.boring_classes import BoringModel

    from ckptstore_client.trainers.lightning import SaveWhenAsked, StoreCheckpointIO

    class Signalled(BoringModel):
        def training_step(self, values: torch.Tensor, batch_idx: int) -> Any:
            if batch_idx == 4 + batch:  # the second step is made of the batches 4 to 7
                os.kill(os.getpid(), signal.SIGTERM)
            return super().training_step(values, batch_idx)

    write_config(tmp_path / "home", tiers=[{"name": "nvme", "kind": "posix", "path": tmp_path / "nvme"}])
    with DaemonProcess(tmp_path / "home"), ckptstore.connect(home=tmp_path / "home", start=False) as store:
        checkpoints = StoreCheckpointIO("/run", store=store)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        trainer = Trainer(
            plugins=[checkpoints],
            callbacks=[SaveWhenAsked(checkpoints, grace_s=60)],
            accumulate_grad_batches=4,
            max_steps=10,
            limit_val_batches=0,
            accelerator="cpu",
            default_root_dir=tmp_path,
            **quiet,
        )
        trainer.fit(Signalled())
        (entry,) = store.ls("/run")
        assert entry.step == trainer.global_step == 2
        progress = store.load(entry.path)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        assert progress["current"]["processed"] == 8
