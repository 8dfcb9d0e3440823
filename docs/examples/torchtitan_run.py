"""A training that makes its parts as torchtitan's trainer does, from configurations, and may be killed at any moment.

    torchrun --nproc-per-node 2 torchtitan_run.py /runs/tiny-net

In a torchtitan job only the configuration is yours: `checkpoint=checkpoints_in("/runs/llama3")` in its `Trainer.Config`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import IterableDataset
from torchtitan.components.dataloader import ParallelAwareDataloader
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer, ParamGroupConfig

from ckptstore_client.trainers.torchtitan import StoreCheckpointManager

FEATURES, STEPS = 9, 12


def checkpoints_in(folder: str) -> StoreCheckpointManager.Config:
    return StoreCheckpointManager.Config(
        enable=True,
        folder=f"ckpt://{folder}",
        async_mode="async",
        interval=2,
        keep_latest_k=0,  # a policy of the store keeps what is to be kept
        last_save_model_only=False,
    )


class Values(IterableDataset):
    """Endless random values, other ones for each rank; `state_dict` says which comes next."""

    def __init__(self, rank: int) -> None:
        self.rank, self.next = rank, 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            self.next += 1
            yield torch.randn(FEATURES, generator=torch.Generator().manual_seed(1000 * self.rank + self.next))

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


class Progress:
    """How far the training is, as torchtitan's trainer says it of itself."""

    step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


def train(checkpoints: str) -> None:
    dist.init_process_group()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(FEATURES, 16), nn.LayerNorm(16), nn.Linear(16, FEATURES))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in (net[0], net[2], net):
        fully_shard(module, mesh=mesh)
    adamw = ParamGroupConfig(pattern=".*", optimizer_name="AdamW", optimizer_kwargs={"lr": 1e-2})
    optimizers = OptimizersContainer.Config(param_groups=[adamw], implementation="for-loop").build(model_parts=[net])
    schedulers = LRSchedulersContainer.Config(warmup_steps=4).build(optimizers=optimizers, training_steps=STEPS)
    loader = ParallelAwareDataloader(Values(dist.get_rank()), dist.get_rank(), dist.get_world_size(), batch_size=4)
    progress = Progress()
    checkpointer = checkpoints_in(checkpoints).build(
        dataloader=loader,
        model_parts=[net],
        optimizers=optimizers,
        lr_schedulers=schedulers,
        states={"train_state": progress},
        sd_adapter=None,
    )
    checkpointer.load()  # the newest; nothing at the first start

    batches = iter(loader)
    while progress.step < STEPS:
        progress.step += 1
        batch = next(batches)
        nn.functional.mse_loss(net(batch), batch).backward()
        checkpointer.maybe_wait_for_staging()
        optimizers.step()
        schedulers.step()
        optimizers.zero_grad()
        checkpointer.save(progress.step, last_step=progress.step == STEPS)
    checkpointer.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    train(sys.argv[1])
