"""A Lightning training that may be killed at any moment: start it again, and it goes on where its newest checkpoint is.

    python lightning_run.py /runs/tiny-net
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from ckptstore_client.trainers.lightning import RandomStates, StoreCheckpointIO

FEATURES, BATCHES, BATCH = 8, 5, 4


class Batches:
    """Five batches an epoch in an order that the epoch seeds; `state_dict` says where in it the training is."""

    def __init__(self) -> None:
        self.values = torch.randn(BATCHES * BATCH, FEATURES, generator=torch.Generator().manual_seed(1))
        self.epoch = self.next = 0

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[torch.Tensor]:
        order = torch.randperm(len(self.values), generator=torch.Generator().manual_seed(self.epoch))
        for number in range(self.next, BATCHES):
            self.next = number + 1
            yield self.values[order[number * BATCH : (number + 1) * BATCH]]
        self.epoch, self.next = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.next = state["epoch"], state["next"]


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, FEATURES))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return nn.functional.mse_loss(self.layers(batch), batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[3, 7])
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def train(checkpoints: str) -> None:
    seed_everything(0)
    net = Net()
    store = StoreCheckpointIO(checkpoints, guard=lambda: trainer.optimizers)
    trainer = Trainer(
        plugins=[store],
        callbacks=[ModelCheckpoint(every_n_train_steps=2, save_top_k=-1), RandomStates()],
        max_steps=12,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(net, Batches(), ckpt_path=store.latest())  # None at the first start


if __name__ == "__main__":
    train(sys.argv[1])
