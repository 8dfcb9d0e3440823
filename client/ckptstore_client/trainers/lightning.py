"""PyTorch Lightning: `Trainer(plugins=[StoreCheckpointIO("/runs/gpt")])` saves into the store.

The hook is Lightning's own `CheckpointIO` plugin: every checkpoint that a strategy writes as one file goes through it, whoever asked for
it (`ModelCheckpoint`, `OnExceptionCheckpoint`, `trainer.save_checkpoint`), and so does every `ckpt_path` that is loaded. Sharded
checkpoints of `FSDPStrategy` and `ModelParallelStrategy` do not: `lightning_sharded` is for these.

A checkpoint keeps the last part of the name that Lightning gives it: `<dirpath>/epoch=0-step=40.ckpt` is
`/runs/gpt/epoch=0-step=40.ckpt`. Lightning has two packages with the same classes: this module is for `pytorch_lightning` if that, and
not `lightning`, was imported before. Lightning calls everything here in the trainer's thread. A save returns when its bytes are copied;
when `fit` has returned, all of them are published.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from os import PathLike, fspath
from typing import Any, Protocol, Unpack

import torch

from ckptstore.errors import InvalidInput
from ckptstore_client.preemption import Preemption
from ckptstore_client.process_group import initialised, resolved_together
from ckptstore_client.trainers.folder import FolderOptions, RunFolder
from ckptstore_client.trainers.random_states import random_states, set_random_states

_USES_OLD_NAME = find_spec("lightning") is None or ("pytorch_lightning" in sys.modules and "lightning" not in sys.modules)
PYTORCH_PACKAGE = "pytorch_lightning" if _USES_OLD_NAME else "lightning.pytorch"
_CheckpointIO: Any = import_module("lightning_fabric.plugins" if _USES_OLD_NAME else "lightning.fabric.plugins").CheckpointIO
_Callback: Any = import_module(PYTORCH_PACKAGE).Callback
_Path = str | PathLike[str]


class StoreCheckpointIO(_CheckpointIO):  # type: ignore[misc]
    """The one argument: `Trainer(plugins=[StoreCheckpointIO("/runs/gpt")])`.

    `guard`: an optimizer, several, or a function that gives them (`lambda: trainer.optimizers`), as in `store.save`. The others
    are those of `FolderOptions`.
    """

    def __init__(self, folder: str, *, guard: Any = None, **options: Unpack[FolderOptions]) -> None:
        self.folder = RunFolder(folder, **options)
        self._guard = guard

    def latest(self) -> str | None:
        """For `fit(ckpt_path=…)`: the newest checkpoint of the folder, None at the first start."""
        return self.folder.newest()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _Path, storage_options: Any = None) -> None:
        """Lightning calls it on one rank, whose state is the whole checkpoint."""
        if storage_options is not None:
            raise InvalidInput("storage_options mean nothing here", operation="save", subject=str(path), hint="leave them out")
        guard = self._guard() if callable(self._guard) else self._guard
        place = self.folder.path_of(fspath(path))
        self.folder.save(place, checkpoint, guard=guard, alone=True, step=checkpoint.get("global_step"), metadata=numbers_of(checkpoint))

    def load_checkpoint(self, path: _Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """On the CPU; `map_location` is Lightning's to carry out. There is no pickle in it unless `pickle` was asked for.

        Lightning calls it on every rank. All load what rank 0 asks for: before the ranks know each other, each has asked for the newest.
        """
        loaded: dict[str, Any] = self.folder.load(resolved_together(lambda: self.folder.path_of(fspath(path))))
        return loaded

    def remove_checkpoint(self, path: _Path) -> None:
        """Once newer ones are published: Lightning asks as soon as these are copied."""
        self.folder.remove(self.folder.path_of(fspath(path)))

    def teardown(self) -> None:
        self.folder.finish()


def numbers_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What `ls` and policies may sort by: the epoch, and what a ModelCheckpoint watches."""
    found: dict[str, Any] = {"epoch": checkpoint["epoch"]} if "epoch" in checkpoint else {}
    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, dict) and state.get("monitor") and isinstance(state.get("current_score"), torch.Tensor):
            score = state["current_score"].item()
            if score == score and abs(score) != float("inf"):
                found[state["monitor"]] = score
    return found


class RandomStates(_Callback):  # type: ignore[misc]
    """`Trainer(callbacks=[RandomStates()])`: Lightning's checkpoints have no random number generators; with this they do.

    They are set twice: when the checkpoint is loaded, for samplers that draw when their loader's iterator is made, and, in the middle of an
    epoch, before its next batch is trained with, since making that iterator draws, too.
    """

    def __init__(self) -> None:
        self._states: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Of all ranks, since one rank saves. Collective where there are several: Lightning asks every rank."""
        distributed = initialised()
        if distributed is None or distributed.get_world_size() == 1:
            return {"ranks": [random_states()]}
        ranks = [None] * distributed.get_world_size()
        distributed.all_gather_object(ranks, random_states())
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing is set at another number of ranks than saved."""
        distributed = initialised()
        rank, ranks = (0, 1) if distributed is None else (distributed.get_rank(), distributed.get_world_size())
        if len(state_dict["ranks"]) == ranks:
            self._states = state_dict["ranks"][rank]
            set_random_states(self._states)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._states is not None and batch_idx > 0:
            set_random_states(self._states)
        self._states = None


class SavesInFolder(Protocol):
    folder: RunFolder


class SaveWhenAsked(_Callback):  # type: ignore[misc]
    """`Trainer(plugins=[checkpoints], callbacks=[SaveWhenAsked(checkpoints)])`: a checkpoint for `ckptstore snapshot`, and a last one,
    after which training stops, when the job is about to be ended. Further arguments are `Store.preemption`'s.

    `checkpoints` is what saves: a StoreCheckpointIO, or a strategy of `lightning_sharded`. The signal's handler is this one's while it
    trains, not Lightning's own. Between the batches whose gradients are accumulated nothing is saved: a checkpoint has no gradients.
    """

    def __init__(self, checkpoints: SavesInFolder, **options: Any) -> None:
        self._folder = checkpoints.folder
        self._options = options
        self._training = ExitStack()
        self._step = 0
        self.notice: Preemption | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._step = trainer.global_step
        self.notice = self._training.enter_context(self._folder.preemption(**self._options))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self.notice is not None and self.notice.wanted(self._step):
            trainer.save_checkpoint(f"{self._folder.path}/asked-step={trainer.global_step}.ckpt")
            trainer.should_stop = trainer.should_stop or self.notice.leaving

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._training.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._training.close()
