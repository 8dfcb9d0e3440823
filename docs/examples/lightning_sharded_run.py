"""A Lightning training whose model is sharded over all ranks, which may be killed at any moment, and go on with any number of ranks.

    torchrun --nproc-per-node 2 lightning_sharded_run.py /runs/tiny-net
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.distributed.fsdp import fully_shard

from ckptstore_client.trainers.lightning import RandomStates
from ckptstore_client.trainers.lightning_sharded import StoreModelParallelStrategy

FEATURES, BATCHES, BATCH = 9, 5, 12


class Batches:
    """Five batches an epoch in an order that the epoch seeds, each dealt to the ranks; `state_dict` says where in it the training is."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.values = torch.randn(BATCHES * BATCH, FEATURES, generator=torch.Generator().manual_seed(1))
        self.rank, self.ranks = rank, ranks
        self.epoch = self.next = 0

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[torch.Tensor]:
        order = torch.randperm(len(self.values), generator=torch.Generator().manual_seed(self.epoch))
        for number in range(self.next, BATCHES):
            self.next = number + 1
            yield self.values[order[number * BATCH : (number + 1) * BATCH][self.rank :: self.ranks]]
        self.epoch, self.next = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.next = state["epoch"], state["next"]


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, 16), nn.LayerNorm(16), nn.Dropout(0.3), nn.Linear(16, FEATURES))

    def configure_model(self) -> None:
        for layer in (self.layers[0], self.layers[3], self.layers):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return nn.functional.mse_loss(self.layers(batch), batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[3, 7])
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def train(checkpoints: str, rank: int, ranks: int) -> None:
    seed_everything(0)
    strategy = StoreModelParallelStrategy(checkpoints=checkpoints, guard=True, data_parallel_size=ranks, tensor_parallel_size=1)
    trainer = Trainer(
        strategy=strategy,
        devices=ranks,
        callbacks=[ModelCheckpoint(every_n_train_steps=2, save_top_k=-1), RandomStates()],
        max_steps=12,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), Batches(rank, ranks), ckpt_path=strategy.latest())  # None at the first start


if __name__ == "__main__":
    train(sys.argv[1], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
