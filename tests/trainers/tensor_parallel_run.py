"""The sharded Lightning example on a mesh of two dimensions: layers are split over two ranks each, and sharded over the others."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from ckptstore_client.trainers.lightning import RandomStates
from ckptstore_client.trainers.lightning_sharded import StoreModelParallelStrategy

EXAMPLE: Any = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "examples" / "lightning_sharded_run.py"))
SPLIT = 2


class Net(EXAMPLE["Net"]):  # type: ignore[misc]
    def configure_model(self) -> None:
        wide, _, _, narrow = self.layers
        mesh = self.device_mesh["tensor_parallel"]
        parallelize_module(wide, mesh, ColwiseParallel(output_layouts=Replicate()))
        parallelize_module(narrow, mesh, RowwiseParallel(input_layouts=Replicate()))
        if self.device_mesh["data_parallel"].size() > 1:
            fully_shard(self.layers, mesh=self.device_mesh["data_parallel"])


def train(checkpoints: str, rank: int, ranks: int) -> None:
    seed_everything(0)
    rows = ranks // SPLIT
    strategy = StoreModelParallelStrategy(checkpoints=checkpoints, guard=True, data_parallel_size=rows, tensor_parallel_size=SPLIT)
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
    batches = EXAMPLE["Batches"](rank // SPLIT, rows)  # ranks that have parts of the same layers get the same values
    trainer.fit(Net(), batches, ckpt_path=strategy.latest())


if __name__ == "__main__":
    train(sys.argv[1], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
