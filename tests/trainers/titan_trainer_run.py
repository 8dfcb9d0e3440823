"""torchtitan's own `Trainer`, with a small Llama, on a CPU: FSDP over two ranks, and beside tensor parallelism over four.

torchtitan asks its device's module for things that a CPU has none of (names, memory statistics): here they are answered with nothing. Its
barrier names no device and gradients are summed plainly, since gloo refuses the rest; the timeout of groups stays, which this torch cannot
change; what needs Triton and TensorBoard, and is not used, is left out. All else, from the configuration to the loop, is torchtitan's.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch._utils
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import IterableDataset

ABSENT: dict[str, Any] = {
    "get_device_name": lambda *_: "cpu",
    "get_device_properties": lambda *_: SimpleNamespace(total_memory=1 << 30),
    "memory_stats": lambda *_: {},
    "reset_peak_memory_stats": lambda *_: None,
    "empty_cache": lambda *_: None,
}
for name, answer in ABSENT.items():
    setattr(torch.cpu, name, answer)
for missing in ("torchtitan.distributed.minimal_async_ep.kernels", "torch.utils.tensorboard"):
    unused: Any = ModuleType(missing)
    unused.__getattr__ = lambda name: None
    sys.modules[missing] = unused
torch._utils._get_available_device_type = lambda: "cpu"  # type: ignore[assignment]
divide = FSDPModule.set_gradient_divide_factor


def divide_after_the_sum(module: FSDPModule, factor: float) -> None:
    divide(module, factor)
    module.set_force_sum_reduction_for_comms(True)


FSDPModule.set_gradient_divide_factor = divide_after_the_sum  # type: ignore[method-assign]
barrier = dist.barrier
dist.barrier = lambda *_, **__: barrier()

from torchtitan.components.dataloader import ParallelAwareDataloader  # noqa: E402 - what it finds as its device is decided before
from torchtitan.components.loss import CrossEntropyLoss  # noqa: E402
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw  # noqa: E402
from torchtitan.components.tokenizer import BaseTokenizer  # noqa: E402
from torchtitan.config import ParallelismConfig, TrainingConfig  # noqa: E402
from torchtitan.distributed import utils  # noqa: E402
from torchtitan.models import llama3  # noqa: E402
from torchtitan.models.common.attention import ScaledDotProductAttention  # noqa: E402
from torchtitan.models.common.config_utils import decoder_vocab_size  # noqa: E402
from torchtitan.trainer import Trainer  # noqa: E402

from ckptstore_client.trainers.torchtitan import StoreCheckpointManager  # noqa: E402

LENGTH, STEPS = 16, 8
utils.set_pg_timeouts = lambda *_, **__: None
llama3.get_attention_config = lambda _: ScaledDotProductAttention.Config()  # the others are compiled for a GPU


class NoTokenizer(BaseTokenizer):
    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config: Config, **_: Any) -> None:
        super().__init__()

    def encode(self, *_: Any, **__: Any) -> list[int]:
        return []

    def decode(self, *_: Any, **__: Any) -> str:
        return ""

    def get_vocab_size(self) -> int:
        return 2048


class Tokens(IterableDataset):
    """Endless random tokens, other ones for each data-parallel rank; `state_dict` says which come next."""

    def __init__(self, rank: int) -> None:
        self.rank, self.next = rank, 0

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        while True:
            self.next += 1
            tokens = torch.randint(2048, (LENGTH + 1,), generator=torch.Generator().manual_seed(1000 * self.rank + self.next))
            yield {"input": tokens[:-1]}, tokens[1:]

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


class Loader(ParallelAwareDataloader):
    @dataclass(kw_only=True, slots=True)
    class Config(ParallelAwareDataloader.Config):
        pass

    def __init__(self, config: Config, *, dp_rank: int, dp_world_size: int, local_batch_size: int, **_: Any) -> None:
        super().__init__(Tokens(dp_rank), dp_rank, dp_world_size, batch_size=local_batch_size)


def train(checkpoints: str) -> None:
    ranks = int(os.environ["WORLD_SIZE"])
    spec = llama3.model_registry("debugmodel")
    spec.model.layers = spec.model.layers[:2]
    config = Trainer.Config(
        model_spec=spec,
        dump_folder=tempfile.mkdtemp(),
        tokenizer=NoTokenizer.Config(),
        dataloader=Loader.Config(),
        loss=CrossEntropyLoss.Config(global_vocab_size=decoder_vocab_size(spec)),
        optimizer=default_adamw(lr=1e-3),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2),
        training=TrainingConfig(
            local_batch_size=2, seq_len=LENGTH, steps=STEPS, disable_cuda_graphs=True, mixed_precision_param="float32"
        ),
        parallelism=ParallelismConfig(tensor_parallel_degree=2 if ranks == 4 else 1, spmd_backend="partial_dtensor"),
        activation_checkpoint=None,
        checkpoint=StoreCheckpointManager.Config(
            enable=True, folder=f"ckpt://{checkpoints}", async_mode="async", interval=2, keep_latest_k=0, last_save_model_only=False
        ),
    )
    config.debug.seed = 7
    trainer = config.build()
    trainer.train()
    trainer.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    train(sys.argv[1])
