"""The Lightning example under DDP, where every rank trains with the same batches and drops out its own."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from ckptstore_client.trainers.lightning import RandomStates, StoreCheckpointIO

EXAMPLE: Any = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "examples" / "lightning_run.py"))


def train(checkpoints: str, rank: int, ranks: int) -> None:
    seed_everything(rank)
    store = StoreCheckpointIO(checkpoints, guard=lambda: trainer.optimizers)
    trainer = Trainer(
        strategy="ddp",
        devices=ranks,
        plugins=[store],
        callbacks=[ModelCheckpoint(every_n_train_steps=2, save_top_k=-1), RandomStates()],
        max_steps=12,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(EXAMPLE["Net"](), EXAMPLE["Batches"](), ckpt_path=store.latest())


if __name__ == "__main__":
    train(sys.argv[1], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
