"""A pipeline of two stages, for which DeepSpeed writes a file a layer; that of the layer without parameters is empty."""

from __future__ import annotations

import sys

import deepspeed
import torch
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.utils import set_random_seed
from torch import nn

from ckptstore_client.trainers.deepspeed import StoreCheckpoints

FEATURES, STEPS = 8, 12
CONFIG = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4}


def train(checkpoints: str) -> None:
    deepspeed.init_distributed()
    torch.manual_seed(0)
    layers = [nn.Linear(FEATURES, 16), nn.Dropout(0.3), nn.Linear(16, 16), nn.Linear(16, FEATURES)]
    net = PipelineModule(layers=layers, num_stages=2, loss_fn=nn.functional.mse_loss)
    engine, *_ = deepspeed.initialize(model=net, optimizer=torch.optim.AdamW(net.parameters(), lr=1e-2), config=CONFIG)
    set_random_seed(engine.global_rank)
    store = StoreCheckpoints(engine, checkpoints)
    engine.load_checkpoint()
    for step in range(engine.global_steps, STEPS):
        halves = torch.randn(2, 4, FEATURES, generator=torch.Generator().manual_seed(step))
        engine.train_batch(data_iter=iter([(half, half) for half in halves]))
        if engine.global_steps % 2 == 0:
            engine.save_checkpoint()
    store.finish()


if __name__ == "__main__":
    train(sys.argv[1])
