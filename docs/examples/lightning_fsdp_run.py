"""The training of `lightning_sharded_run.py` with FSDP1, which may be killed at any moment, and go on with any number of ranks.

    torchrun --nproc-per-node 2 lightning_fsdp_run.py /runs/tiny-net

On a GPU Lightning wraps the model by itself; on the CPU, where it does not, `configure_model` does. In a folder named `newest` only the
newest checkpoint is kept.
"""

from __future__ import annotations

import os
import sys

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_sharded_run import Batches, Net
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ckptstore_client.trainers.lightning import RandomStates
from ckptstore_client.trainers.lightning_sharded import StoreFSDPStrategy


def sharded(module: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)


class ShardedNet(Net):
    def configure_model(self) -> None:
        if not isinstance(self.layers, FullyShardedDataParallel):
            self.layers = sharded(nn.Sequential(sharded(self.layers[0]), *self.layers[1:]))


def train(checkpoints: str, rank: int, ranks: int) -> None:
    seed_everything(0)
    strategy = StoreFSDPStrategy(checkpoints=checkpoints, use_orig_params=True, process_group_backend="gloo")
    keep = 1 if checkpoints.endswith("/newest") else -1
    trainer = Trainer(
        strategy=strategy,
        devices=ranks,
        callbacks=[ModelCheckpoint(every_n_train_steps=2, save_top_k=keep), RandomStates()],
        max_steps=12,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ShardedNet(), Batches(rank, ranks), ckpt_path=strategy.latest())  # None at the first start


if __name__ == "__main__":
    train(sys.argv[1], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
