"""A training of several ranks that is asked for a checkpoint while it runs, and then told to end; with the trainer that its folder names.

`/lightning/asked`: at the first start rank 1 asks for a snapshot, and when it has one, it alone gets the signal that ends jobs. At the next
start the training goes on for `MORE` steps. `/lightning/whole-120` is one of 120 steps that nobody disturbs. Rank 0 hears of whatever is
asked some steps later than the others. Each rank that was told to leave writes down when it did so, and what was kept.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import DataLoaderConfiguration, set_seed
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments

import ckptstore
from ckptstore.errors import NotFound
from ckptstore_client.preemption import Preemption
from ckptstore_client.safe_points import SafePoints
from ckptstore_client.trainers import huggingface, lightning
from ckptstore_client.trainers.accelerate import StoreAccelerator
from ckptstore_client.trainers.lightning_sharded import StoreFSDPStrategy, StoreModelParallelStrategy

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
WHOLE, SHARDED, TEXTS = (runpy.run_path(str(EXAMPLES / f"{name}_run.py")) for name in ("lightning", "lightning_sharded", "huggingface"))
ENDLESS, MORE, ASKED_AT = 100_000, 10, 3
#: A step's length, and how much later rank 0 hears, in seconds.
PACE_S, LATE_S = 0.02, 0.3


class Story:
    """What happens to one rank of a training in a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.rank, self.ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        way = folder.rpartition("/")[2]
        with ckptstore.connect(start=False) as store:
            try:
                newest = store.stat(f"{folder}/@latest").step
            except NotFound:
                newest = None
        self.asks = way == "asked" and newest is None
        self.last = ENDLESS if self.asks else (newest or 0) + MORE if way == "asked" else int(way.removeprefix("whole-"))
        if self.asks and self.rank == 0:
            hear_late()

    def step_begins(self, step: int) -> None:
        if self.asks:
            time.sleep(PACE_S)
            if (self.rank, step) == (1, ASKED_AT):
                threading.Thread(target=self._ask, daemon=True).start()

    def _ask(self) -> None:
        with ckptstore.connect(start=False) as store:
            store.snapshot(self.folder, wait=True, timeout_s=90)
        os.kill(os.getpid(), signal.SIGTERM)

    def tell(self, step: int, notice: Preemption | None) -> None:
        """When all is over."""
        if notice is not None and notice.leaving:
            kept = None if notice.kept is None else asdict(notice.kept)
            Path(f"{self.folder.split('/')[1]}-{self.rank}.json").write_text(json.dumps({"left_at": step, "kept": kept}))


def hear_late() -> None:
    take_up = SafePoints.take_up

    def late(points: SafePoints, request: Any) -> Any:
        time.sleep(LATE_S)
        return take_up(points, request)

    SafePoints.take_up = late  # type: ignore[method-assign]


# --- no trainer, and Accelerate ------------------------------------------------------------------------------------------------------


def plain(story: Story) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(story.rank)
    weights, step = torch.zeros(100), 0
    with ckptstore.connect(start=False) as store, store.preemption(story.folder, grace_s=60) as notice:
        if story.last < ENDLESS and story.folder.endswith("/asked"):
            state = store.load(f"{story.folder}/@latest")
            weights, step = state["weights"], state["step"]
            torch.set_rng_state(state["random"])
        while step < story.last and not notice.leaving:
            step += 1
            story.step_begins(step)
            change = torch.randn(100)
            dist.all_reduce(change)
            weights += change
            if notice.wanted(step) or step == story.last:
                state = {"weights": weights, "step": step, "random": torch.get_rng_state()}
                store.save(f"{story.folder}/step-{step}", state, step=step).wait_published()
    story.tell(step, notice)


def accelerate(story: Story) -> None:
    set_seed(0)
    values = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    net: Any = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.Linear(16, 8))
    optimizer: Any = torch.optim.AdamW(net.parameters(), lr=1e-2)
    options = DataLoaderConfiguration(use_seedable_sampler=True)
    accelerator = StoreAccelerator(cpu=True, checkpoints=story.folder, dataloader_config=options)
    set_seed(0, device_specific=True)
    loader: Any = DataLoader(TensorDataset(values), batch_size=5, shuffle=True, generator=torch.Generator())
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    step = 0
    if (newest := accelerator.latest()) is not None:
        accelerator.load_state(newest)
        step = accelerator.folder.store.stat(newest).step
    with accelerator.folder.preemption(grace_s=60) as notice:
        while step < story.last and not notice.leaving:
            epoch, batch = divmod(step, len(loader))
            loader.set_epoch(epoch)
            for (values,) in accelerator.skip_first_batches(loader, batch):
                step += 1
                story.step_begins(step)
                accelerator.backward(nn.functional.mse_loss(net(values), values))
                optimizer.step()
                optimizer.zero_grad()
                if notice.wanted(step) or step == story.last:
                    accelerator.save_state(f"step-{step}", step=step)
                if notice.leaving or step == story.last:
                    break
    accelerator.end_training()
    story.tell(step, notice)


# --- Hugging Face --------------------------------------------------------------------------------------------------------------------


class _StepsOfTransformers(TrainerCallback):  # type: ignore[misc]
    def __init__(self, story: Story) -> None:
        self.story = story

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.story.step_begins(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = control.should_save or state.global_step == self.story.last


def transformers(story: Story) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 10 * ENDLESS}
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=story.last,
        save_strategy="no",
        per_device_train_batch_size=8,
        lr_scheduler_type="constant",
        **quiet,
    )
    trainer = huggingface.StoreTrainer(model, arguments, train_dataset=TEXTS["Texts"](), checkpoints=story.folder, guard=True)
    asked = huggingface.SaveWhenAsked(trainer, grace_s=60)
    trainer.add_callback(_StepsOfTransformers(story))
    trainer.add_callback(asked)
    trainer.train(resume_from_checkpoint=trainer.latest())
    story.tell(trainer.state.global_step, asked.notice)


# --- Lightning -----------------------------------------------------------------------------------------------------------------------


class _StepsOfLightning(Callback):  # type: ignore[misc]
    def __init__(self, story: Story) -> None:
        self.story = story

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.story.step_begins(trainer.global_step + 1)


def of_lightning(story: Story, net: Any, batches: Any, checkpoints: Any, **options: Any) -> None:
    asked = lightning.SaveWhenAsked(checkpoints, grace_s=60)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        devices=story.ranks,
        callbacks=[_StepsOfLightning(story), lightning.RandomStates(), asked],
        max_steps=story.last,
        accelerator="cpu",
        **options,
        **quiet,
    )
    trainer.fit(net, batches, ckpt_path=checkpoints.latest())
    if not story.asks:
        trainer.save_checkpoint(f"{story.folder}/last.ckpt")
        checkpoints.folder.finish()
    story.tell(trainer.global_step, asked.notice)


def lightning_ddp(story: Story) -> None:
    seed_everything(story.rank)
    checkpoints = lightning.StoreCheckpointIO(story.folder)
    of_lightning(story, WHOLE["Net"](), WHOLE["Batches"](), checkpoints, strategy="ddp", plugins=[checkpoints], accumulate_grad_batches=2)


def model_parallel(story: Story) -> None:
    seed_everything(0)
    strategy = StoreModelParallelStrategy(checkpoints=story.folder, guard=True, data_parallel_size=story.ranks, tensor_parallel_size=1)
    of_lightning(story, SHARDED["Net"](), SHARDED["Batches"](story.rank, story.ranks), strategy, strategy=strategy)


class _Wrapped(SHARDED["Net"]):  # type: ignore[misc]
    def configure_model(self) -> None:
        if not isinstance(self.layers, FullyShardedDataParallel):
            self.layers = FullyShardedDataParallel(self.layers, device_id=torch.device("cpu"), use_orig_params=True)


def fsdp(story: Story) -> None:
    seed_everything(0)
    strategy = StoreFSDPStrategy(checkpoints=story.folder, use_orig_params=True, process_group_backend="gloo")
    of_lightning(story, _Wrapped(), SHARDED["Batches"](story.rank, story.ranks), strategy, strategy=strategy)


TRAINERS: dict[str, Callable[[Story], None]] = {
    trainer.__name__: trainer for trainer in (plain, accelerate, transformers, lightning_ddp, model_parallel, fsdp)
}

if __name__ == "__main__":
    TRAINERS[sys.argv[1].split("/")[1]](Story(sys.argv[1]))
