"""A training with DeepSpeed (ZeRO 2) that may be killed at any moment: start it again, and it goes on where its newest checkpoint is.

    deepspeed --num_gpus 2 deepspeed_run.py /runs/tiny-net
    torchrun --nproc-per-node 2 deepspeed_run.py /runs/tiny-net
"""

from __future__ import annotations

import sys

import deepspeed
import torch
from deepspeed.runtime.utils import set_random_seed
from torch import nn

from ckptstore_client.trainers.deepspeed import StoreCheckpoints

FEATURES, BATCH, STEPS = 8, 8, 12
CONFIG = {"train_micro_batch_size_per_gpu": BATCH, "zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}


def batch_of(step: int, rank: int) -> torch.Tensor:
    return torch.randn(BATCH, FEATURES, generator=torch.Generator().manual_seed(1000 * rank + step))


def train(checkpoints: str) -> None:
    torch.manual_seed(0)  # the ranks have the same weights
    net = nn.Sequential(nn.Linear(FEATURES, 16), nn.LayerNorm(16), nn.Dropout(0.3), nn.Linear(16, FEATURES))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-2, total_steps=STEPS + 1)
    deepspeed.init_distributed()
    engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, lr_scheduler=scheduler, config=CONFIG)
    set_random_seed(engine.global_rank)  # and drop out each their own
    store = StoreCheckpoints(engine, checkpoints)
    engine.load_checkpoint()  # the newest; nothing at the first start

    for step in range(engine.global_steps, STEPS):
        batch = batch_of(step, engine.global_rank).to(engine.device)
        engine.backward(nn.functional.mse_loss(engine(batch), batch))
        engine.step()
        if engine.global_steps % 2 == 0:
            engine.save_checkpoint(client_state={"seen": (step + 1) * BATCH})
    store.finish()


if __name__ == "__main__":
    train(sys.argv[1])
