"""The sharded Lightning example with FSDP1, whose shards are no DTensors. It trains on the CPU if modules are wrapped for it by hand.

In a folder named `newest` only the newest checkpoint is kept.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ckptstore_client.trainers.lightning import RandomStates
from ckptstore_client.trainers.lightning_sharded import StoreFSDPStrategy

EXAMPLE: Any = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "examples" / "lightning_sharded_run.py"))


def sharded(module: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)


class Net(EXAMPLE["Net"]):  # type: ignore[misc]
    def configure_model(self) -> None:
        if not isinstance(self.layers, FullyShardedDataParallel):
            self.layers = sharded(nn.Sequential(sharded(self.layers[0]), *self.layers[1:]))


def train(checkpoints: str, rank: int, ranks: int) -> None:
    seed_everything(0)
    strategy = StoreFSDPStrategy(checkpoints=checkpoints, use_orig_params=True, process_group_backend="gloo")
    trainer = Trainer(
        strategy=strategy,
        devices=ranks,
        callbacks=[ModelCheckpoint(every_n_train_steps=2, save_top_k=1 if checkpoints.endswith("/newest") else -1), RandomStates()],
        max_steps=12,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), EXAMPLE["Batches"](rank, ranks), ckpt_path=strategy.latest())


if __name__ == "__main__":
    train(sys.argv[1], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
