"""DeepSpeed with or without `guard`, as the folder says: `/stage-2/guarded`, `/bf16/plain`, `/pipeline/guarded`.

What a guard leaves to be copied later is copied late: when a step that did not wait for it would be over. All but the
little that is no weight and no optimizer state must be left to be copied so.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Container
from typing import Any

import deepspeed
import torch
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.utils import set_random_seed
from torch import nn

from ckptstore_client.staging import BoundState
from ckptstore_client.trainers.deepspeed import StoreCheckpoints

FEATURES, BATCH, STEPS = 64, 4, 3
LATE_S = 0.2
#: More than random number generators and buffers; less than a matrix of weights, or half of one.
SMALL_BYTES = 16_000


class LateCopies:
    """In the place of `BoundState.copy`: how many bytes are copied at once, and how many in the background, which is done late."""

    def __init__(self) -> None:
        self.at_once = self.later = 0
        self._copy = BoundState.copy

    def __call__(self, bound: BoundState, leaves: Container[int] | None = None) -> None:
        stored = [leaf for leaves_of in bound.staged.plan.stored.values() for leaf in leaves_of if leaves is None or leaf in leaves]
        size_bytes = sum(bound.staged.values[leaf].nbytes for leaf in stored)
        if threading.current_thread() is threading.main_thread():
            self.at_once += size_bytes
        else:
            self.later += size_bytes
            time.sleep(LATE_S)
        self._copy(bound, leaves)


class Average(nn.Module):
    """A buffer that changes with each forward, while the weights are copied."""

    mean: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.mean.lerp_(values.detach().mean(0).to(self.mean.dtype), 0.5)
        return values


def config(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {"train_micro_batch_size_per_gpu": BATCH, "gradient_clipping": 1.0}
    if kind.startswith("stage-"):
        found["zero_optimization"] = {"stage": int(kind.removeprefix("stage-"))}
    if kind == "bf16":
        found |= {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}
    return found


def train(checkpoints: str) -> None:
    kind, way = checkpoints.strip("/").split("/")
    torch.manual_seed(0)
    layers = [nn.Linear(FEATURES, 256), Average(256), nn.Dropout(0.3), nn.Linear(256, FEATURES)]
    deepspeed.init_distributed()
    net: nn.Module = nn.Sequential(*layers)
    if kind == "pipeline":
        net = PipelineModule(layers=layers, num_stages=2, loss_fn=nn.functional.mse_loss)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, config=config(kind))
    set_random_seed(engine.global_rank)
    store = StoreCheckpoints(engine, checkpoints, guard=way == "guarded")
    late = LateCopies()
    BoundState.copy = lambda bound, leaves=None: late(bound, leaves)  # type: ignore[method-assign]
    for step in range(STEPS):
        batch = torch.randn(BATCH, FEATURES, generator=torch.Generator().manual_seed(step)).to(next(net.parameters()).dtype)
        if kind == "pipeline":
            engine.train_batch(data_iter=iter([(batch, batch)]))
        else:
            engine.backward(nn.functional.mse_loss(engine(batch), batch))
            engine.step()
        engine.save_checkpoint()
    store.finish()
    if way == "guarded":
        assert late.at_once < STEPS * SMALL_BYTES, f"{late.at_once} bytes were copied at once, {late.later} later"
        assert late.later > STEPS * SMALL_BYTES or engine.global_rank > 0, "rank 0 always has something to save"


if __name__ == "__main__":
    train(sys.argv[1])
