"""Hugging Face `Trainer`: `StoreTrainer(…, checkpoints="/runs/gpt")` saves into the store where `Trainer` would write a folder.

The hook is `Trainer._save_checkpoint`, which `Trainer` calls whenever its control says "save", before anything is on disk (a callback's
`on_save` comes after the write), and its counterparts `_load_from_checkpoint`, `_load_optimizer_and_scheduler`, `_load_scaler`,
`_load_rng_state` and `_load_best_model`. They are the methods that subclasses of `Trainer` in other libraries override, and are looked
for when a trainer is made: with a transformers that lacks one, making a `StoreTrainer` fails instead of training without checkpoints.
`StoreCheckpoints` is the mixin for other subclasses: `class MyTrainer(StoreCheckpoints, SFTTrainer): ...`.

`train` reads the folder that it resumes from in one more place, `trainer_state.json`. So that file, and nothing else, is written to a
temporary folder for as long as `train` runs.

With several ranks that have the whole model each (DDP), rank 0 stores it, and every rank its random number generators. The dataloader's
place follows from the step and the seed, as in `Trainer`. FSDP, DeepSpeed, XLA and SageMaker write by their own ways, and are refused.
One thread, the trainer's.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import transformers

from ckptstore.errors import InvalidInput, NotFound
from ckptstore.retention import BestN, LatestN
from ckptstore_client.preemption import Preemption
from ckptstore_client.trainers.folder import RunFolder, folder_options
from ckptstore_client.trainers.random_states import random_states, set_random_states

_STATE_FILE = "trainer_state.json"
_HOOKS = (
    "_save_checkpoint",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_load_scaler",
    "_load_rng_state",
    "_load_best_model",
    "_get_output_dir",
)


class StoreCheckpoints:
    """What a `Trainer` gets by having this before it among its bases.

    `guard`: whether the copy of what the optimizer owns overlaps the next forward and backward (nothing else may change the weights then,
    such as callbacks that average them). The others are those of `FolderOptions`.
    """

    # what Trainer has
    args: Any
    state: Any
    control: Any
    model: Any
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any
    callback_handler: Any
    hp_search_backend: Any

    def __init__(self, *args: Any, checkpoints: str, guard: bool = False, **kwargs: Any) -> None:
        options = folder_options(kwargs)
        base = super()
        missing = [name for name in _HOOKS if not callable(getattr(base, name, None))]
        if missing:
            why = f"the Trainer of transformers {transformers.__version__} has no {', '.join(missing)}"
            raise InvalidInput(why, operation="make a trainer", subject=type(self).__name__)
        super().__init__(*args, **kwargs)
        self.folder = RunFolder(checkpoints, **options)
        self._guard = guard
        self._resumes: tuple[str, str] | None = None  # the temporary folder that stands for a checkpoint, and the checkpoint
        _refuse_other_ways(self)
        if self.args.save_total_limit and self.args.should_save:
            self._set_limit()

    def latest(self) -> str | None:
        """For `train(resume_from_checkpoint=…)`: the newest checkpoint of the folder, None at the first start."""
        return self.folder.newest()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`. True is the newest in the store; so is a path there; any other is a folder on disk.

        When it returns, every checkpoint is published.
        """
        _refuse_other_ways(self)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self.latest()
            if resume_from_checkpoint is None:
                raise NotFound("there is no checkpoint to resume from", operation="train", subject=self.folder.path)
        try:
            if not self.folder.holds(resume_from_checkpoint):
                result = self._trainer.train(resume_from_checkpoint or None, *args, **kwargs)
            else:
                result = self._resumed(self.folder.path_of(str(resume_from_checkpoint)), *args, **kwargs)
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, SaveWhenAsked):
                    callback.end()  # `Trainer` does not tell its callbacks of a training that failed
        self.folder.finish()
        return result

    def _resumed(self, path: str, *args: Any, **kwargs: Any) -> Any:
        with tempfile.TemporaryDirectory(prefix="ckptstore-") as stand_in:
            self._resumes = (stand_in, path)
            try:
                Path(stand_in, _STATE_FILE).write_text(self._load("trainer_state"), "utf-8")
                return self._trainer.train(stand_in, *args, **kwargs)
            finally:
                self._resumes = None

    @property
    def _trainer(self) -> Any:
        return super()

    # --- saving --------------------------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.hp_search_backend is None and trial is None:
            self._trainer.store_flos()
        path = self._path(self.state.global_step, trial)
        best = self.state.best_global_step
        if best:
            self.state.best_model_checkpoint = self._path(best, trial)
        whole = self.args.process_index == 0
        state = self._whole_state() if whole else {}
        if not self.args.save_only_model:
            state["random"] = random_states()
        guard = getattr(self.optimizer, "optimizer", self.optimizer) if self._guard and whole else None
        self.folder.save(path, state, guard=guard, step=self.state.global_step, metadata=self._metrics())

    def _whole_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"model": self.model.state_dict(), "trainer_state": self._trainer_state(), "ranks": self.args.world_size}
        if not self.args.save_only_model:
            state["optimizer"] = self.optimizer.state_dict()
            state["scheduler"] = self.lr_scheduler.state_dict()
            if getattr(self.accelerator, "scaler", None) is not None:
                state["scaler"] = self.accelerator.scaler.state_dict()
        return state

    def _trainer_state(self) -> str:
        """The text of the trainer's own state file, with its callbacks as they are now."""
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, transformers.trainer_callback.ExportableState):
                name = type(callback).__name__
                kept = self.state.stateful_callbacks[name]
                if isinstance(kept, list):
                    kept.append(callback.state())
                else:
                    self.state.stateful_callbacks[name] = callback.state()
        with tempfile.TemporaryDirectory(prefix="ckptstore-") as folder:
            file = Path(folder, _STATE_FILE)
            self.state.save_to_json(str(file))
            return file.read_text("utf-8")

    def _metrics(self) -> dict[str, Any]:
        """The finite numbers that were logged at this step, for `ls --sort` and policies."""
        found: dict[str, Any] = {}
        for entry in self.state.log_history[-5:]:
            if entry.get("step") == self.state.global_step:
                found.update({key: value for key, value in entry.items() if isinstance(value, int | float) and abs(value) < float("inf")})
        return found

    def _path(self, step: int, trial: Any) -> str:
        run = Path(self._trainer._get_output_dir(trial=trial))
        inner = "" if run == Path(self.args.output_dir) else f"/{run.name}"
        return f"{self.folder.path}{inner}/checkpoint-{step}"

    def _set_limit(self) -> None:
        """`save_total_limit` is a policy of the folder; the best one is kept beside those, where the trainer needs it at the end."""
        policies: list[Any] = [LatestN(n=self.args.save_total_limit)]
        metric = self.args.metric_for_best_model
        if metric is not None:
            name = metric if metric.startswith("eval_") else f"eval_{metric}"
            policies.append(BestN(n=1, metric=name, order="max" if self.args.greater_is_better else "min"))
        self.folder.store.retention.keep(self.folder.path, *policies)

    # --- resuming ------------------------------------------------------------------------------------------------------------------

    def _resumes_from(self, folder: str | None) -> bool:
        return self._resumes is not None and folder == self._resumes[0]

    def _load(self, name: str) -> Any:
        """One entry of what rank 0 saved; None if it has none."""
        assert self._resumes is not None
        return self.folder.load(self._resumes[1], only=[name, f"{name}/*"]).get(name)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._resumes_from(resume_from_checkpoint):
            self._trainer._load_from_checkpoint(resume_from_checkpoint, model)
            return
        (self.model if model is None else model).load_state_dict(self._load("model"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self._resumes_from(checkpoint):
            self._trainer._load_optimizer_and_scheduler(checkpoint)
            return
        if self.state.best_global_step and self._resumes is not None:  # `Trainer` drops it: it is no folder on disk
            self.state.best_model_checkpoint = f"{self._resumes[1].rpartition('/')[0]}/checkpoint-{self.state.best_global_step}"
        optimizer = self._load("optimizer")
        if optimizer is not None:
            self.optimizer.load_state_dict(optimizer)
            self.lr_scheduler.load_state_dict(self._load("scheduler"))

    def _load_scaler(self, checkpoint: str | None) -> None:
        if not self._resumes_from(checkpoint):
            self._trainer._load_scaler(checkpoint)
        elif getattr(self.accelerator, "scaler", None) is not None and (scaler := self._load("scaler")) is not None:
            self.accelerator.scaler.load_state_dict(scaler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if not self._resumes_from(checkpoint):
            self._trainer._load_rng_state(checkpoint)
            return
        assert self._resumes is not None
        if self._load("ranks") == self.args.world_size:
            mine = self.folder.load(self._resumes[1], only="random/*", rank=self.args.process_index)
            if "random" in mine:
                set_random_states(mine["random"])

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if not self.folder.holds(best):
            self._trainer._load_best_model()
            return
        self.folder.finish()
        self.model.load_state_dict(self.folder.load(best, only="model/*")["model"])


class StoreTrainer(StoreCheckpoints, transformers.Trainer):  # type: ignore[misc]
    """`transformers.Trainer`, with the argument `checkpoints`: a folder in the store."""


class SaveWhenAsked(transformers.TrainerCallback):  # type: ignore[misc]
    """`trainer.add_callback(SaveWhenAsked(trainer))`: a checkpoint for `ckptstore snapshot`, and a last one, after which training stops,
    when the job is about to be ended. Further arguments are `Store.preemption`'s."""

    def __init__(self, trainer: StoreCheckpoints, **options: Any) -> None:
        self._folder = trainer.folder
        self._options = options
        self._training = ExitStack()
        self.notice: Preemption | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.notice = self._training.enter_context(self._folder.preemption(**self._options))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.notice is not None and self.notice.wanted(state.global_step):
            control.should_save = True
            control.should_training_stop = control.should_training_stop or self.notice.leaving

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.end()

    def end(self) -> None:
        """Heed signals no longer. Again does nothing."""
        self._training.close()


def _refuse_other_ways(trainer: Any) -> None:
    ways = {
        "FSDP": getattr(trainer, "is_fsdp_enabled", False),
        "DeepSpeed": getattr(trainer, "is_deepspeed_enabled", False),
        "XLA": getattr(trainer, "is_fsdp_xla_enabled", False),
    }
    for name, used in ways.items():
        if used:
            why = f"with {name}, no rank has the whole model to save"
            hint = "save sharded states with store.save, or ckptstore_client.torch.Writer"
            raise InvalidInput(why, operation="train", subject=type(trainer).__name__, hint=hint)
    if trainer.args.push_to_hub and str(getattr(trainer.args.hub_strategy, "value", trainer.args.hub_strategy)) != "end":
        why = "there is no folder on disk that could be pushed at each save"
        raise InvalidInput(why, operation="train", subject=type(trainer).__name__, hint='hub_strategy="end"')
