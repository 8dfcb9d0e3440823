"""A training with Accelerate that may be killed at any moment: start it again, and it goes on where its newest checkpoint is.

    python accelerate_run.py /runs/tiny-net
    torchrun --nproc-per-node 2 accelerate_run.py /runs/tiny-net
"""

from __future__ import annotations

import sys

import torch
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ckptstore_client.trainers.accelerate import StoreAccelerator

FEATURES, EPOCHS = 8, 5


class Progress:
    """How far the training is: saved with everything else, since it is registered."""

    def __init__(self) -> None:
        self.epoch = self.batch = 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]


def train(checkpoints: str) -> None:
    set_seed(0)
    values = torch.randn(20, FEATURES, generator=torch.Generator().manual_seed(1))
    net = nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, FEATURES))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-2, total_steps=20)

    accelerator = StoreAccelerator(
        cpu=True,
        checkpoints=checkpoints,
        guard=True,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),  # an order that can be had again
    )
    set_seed(0, device_specific=True)  # the ranks have the same weights, and drop out each their own
    # A generator of its own, so that starting an epoch anew draws nothing from the one that dropout draws from.
    loader = DataLoader(TensorDataset(values), batch_size=5, shuffle=True, generator=torch.Generator())
    net, optimizer, scheduler, loader = accelerator.prepare(net, optimizer, scheduler, loader)
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    if (newest := accelerator.latest()) is not None:  # None at the first start
        accelerator.load_state(newest)

    for epoch in range(progress.epoch, EPOCHS):
        loader.set_epoch(epoch)
        for (batch,) in accelerator.skip_first_batches(loader, progress.batch):
            accelerator.backward(nn.functional.mse_loss(net(batch), batch))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            progress.batch += 1
            step = epoch * len(loader) + progress.batch
            if step % 2 == 0:
                accelerator.save_state(f"step-{step:04d}", step=step)
        progress.epoch, progress.batch = epoch + 1, 0
    accelerator.end_training()


if __name__ == "__main__":
    train(sys.argv[1])
