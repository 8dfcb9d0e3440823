"""Accelerate: `StoreAccelerator(checkpoints="/runs/gpt")`, whose `save_state` and `load_state` use the store.

The hooks are those two public methods. Accelerate's own pre-hooks (`register_save_state_pre_hook`, `register_load_state_pre_hook`) come
before its write, but can keep only the models from being written: the optimizers, by far the most, would still be pickled to the folder
after them. Hooks that a program registers are called as ever, with a temporary folder; what they write into it becomes part of the
checkpoint, and lies in such a folder again when the load hooks are called.

With several ranks that have the whole model each (DDP), rank 0 stores it, and each rank what is its own: random number generators and the
state of dataloaders. FSDP, DeepSpeed, Megatron-LM and XLA are refused. One thread, the trainer's. A save returns when its bytes are
copied; `end_training` waits until everything is published.
"""

from __future__ import annotations

import tempfile
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
from accelerate.data_loader import SeedableRandomSampler

from ckptstore.errors import InvalidInput, NotFound
from ckptstore.retention import LatestN
from ckptstore_client.trainers.folder import RunFolder, folder_options
from ckptstore_client.trainers.random_states import random_states, set_random_states

_Path = str | PathLike[str]
_REFUSED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA", "TP")


class StoreAccelerator(accelerate.Accelerator):  # type: ignore[misc]
    """`accelerate.Accelerator`, with the argument `checkpoints`: a folder in the store.

    `guard`: whether the copy of what the optimizers own overlaps the next forward and backward (nothing else may change the weights then).
    The others are those of `FolderOptions`.
    """

    def __init__(self, *args: Any, checkpoints: str, guard: bool = False, **kwargs: Any) -> None:
        options = folder_options(kwargs)
        super().__init__(*args, **kwargs)
        self.folder = RunFolder(checkpoints, **options)
        self._guard = guard
        if str(self.distributed_type.value) in _REFUSED:
            why = f"with {self.distributed_type.value}, no rank has the whole model to save"
            hint = "save sharded states with store.save, or ckptstore_client.torch.Writer"
            raise InvalidInput(why, operation="make an accelerator", subject=checkpoints, hint=hint)
        limit = self.project_configuration.total_limit
        if limit and self.project_configuration.automatic_checkpoint_naming and self.is_main_process:
            self.folder.store.retention.keep(checkpoints, LatestN(n=limit))

    def latest(self) -> str | None:
        """For `load_state`: the newest checkpoint of the folder, None at the first start. Collective where there are several ranks."""
        return self.folder.newest()

    def end_training(self) -> None:
        super().end_training()
        self.folder.finish()

    # --- saving --------------------------------------------------------------------------------------------------------------------

    def save_state(self, output_dir: _Path | None = None, safe_serialization: bool = True, *, step: int | None = None, **_: Any) -> str:
        """Save all that `Accelerator.save_state` saves under the last part of `output_dir`; gives the checkpoint's path.

        Without `output_dir` it is named by its number, as `ProjectConfiguration(automatic_checkpoint_naming=True)` asks for.
        """
        if output_dir is None and not self.project_configuration.automatic_checkpoint_naming:
            raise InvalidInput("the checkpoint has no name", operation="save", subject=self.folder.path, hint="pass output_dir")
        path = self.folder.path_of(f"checkpoint_{self.save_iteration}" if output_dir is None else fspath(output_dir))
        weights = [self.get_state_dict(model) for model in self._models]
        with tempfile.TemporaryDirectory(prefix="ckptstore-") as written:
            for hook in self._save_model_state_pre_hook.values():
                hook(self._models, weights, written)
            self.project_configuration.iteration += 1
            state: dict[str, Any] = {"own": {"random": random_states(), "dataloaders": list(map(_place_in, self._dataloaders))}}
            if self.process_index == 0:
                state |= self._shared_state(weights, _files_in(Path(written)))
        guard = [getattr(optimizer, "optimizer", optimizer) for optimizer in self._optimizers] if self._guard else None
        self.folder.save(path, state, guard=guard if self.process_index == 0 else None, step=step)
        return path

    def _shared_state(self, weights: list[Any], files: dict[str, Any]) -> dict[str, Any]:
        return {
            "models": weights,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self._schedulers],
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "custom": [custom.state_dict() for custom in self._custom_objects],
            "files": files,
            "step": self.step,
            "iteration": self.save_iteration,
            "ranks": self.num_processes,
        }

    # --- loading -------------------------------------------------------------------------------------------------------------------

    def load_state(self, input_dir: _Path | None = None, load_kwargs: dict[str, Any] | None = None, **model_kwargs: Any) -> None:
        """Load what was saved there; without `input_dir`, the newest. `model_kwargs` are those of the models' `load_state_dict`."""
        path = self.latest() if input_dir is None else self.folder.path_of(fspath(input_dir))
        if path is None:
            raise NotFound("there is no checkpoint to load", operation="load", subject=self.folder.path)
        state = self.folder.load(path)
        if len(state["custom"]) != len(self._custom_objects):
            why = f"it has the state of {len(state['custom'])} registered objects, and {len(self._custom_objects)} are registered"
            raise InvalidInput(why, operation="load", subject=path, hint="register the same objects before loading")
        models = list(self._models)
        with tempfile.TemporaryDirectory(prefix="ckptstore-") as written:
            _write_files(Path(written), state["files"])
            for hook in self._load_model_state_pre_hook.values():
                hook(models, written)
        model_kwargs.pop("map_location", None)
        for model, weights in zip(models, state["models"], strict=True):
            self.unwrap_model(model).load_state_dict(weights, **model_kwargs)
        pairs = [*zip(self._optimizers, state["optimizers"], strict=True), *zip(self._schedulers, state["schedulers"], strict=True)]
        for target, saved in [*pairs, *zip(self._custom_objects, state["custom"], strict=True)]:
            target.load_state_dict(saved)
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.project_configuration.iteration = state["iteration"]
        if state["ranks"] == self.num_processes:
            own = state if self.process_index == 0 else self.folder.load(path, rank=self.process_index)
            self._load_own(own["own"])

    def _load_own(self, own: dict[str, Any]) -> None:
        for loader, place in zip(self._dataloaders, own["dataloaders"], strict=True):
            _go_to(loader, place)
        set_random_states(own["random"])


def _place_in(loader: Any) -> dict[str, Any]:
    """Which epoch a loader is in, how its sampler shuffles, and all it says itself, if it is a stateful one."""
    sampler = loader.get_sampler() if hasattr(loader, "get_sampler") else None
    seeds = {"epoch": sampler.epoch, "initial_seed": sampler.initial_seed} if isinstance(sampler, SeedableRandomSampler) else None
    state = loader.state_dict() if getattr(loader, "use_stateful_dataloader", False) else None
    return {"iteration": getattr(loader, "iteration", None), "sampler": seeds, "state": state}


def _go_to(loader: Any, place: dict[str, Any]) -> None:
    if place["iteration"] is not None and hasattr(loader, "iteration"):
        loader.iteration = place["iteration"]
    if place["sampler"] is not None and hasattr(loader, "get_sampler"):
        sampler = loader.get_sampler()
        sampler.epoch, sampler.initial_seed = place["sampler"]["epoch"], place["sampler"]["initial_seed"]
    if place["state"] is not None:
        loader.load_state_dict(place["state"])


def _files_in(folder: Path) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): np.fromfile(path, dtype=np.uint8) for path in files}


def _write_files(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise InvalidInput("a file's name leads out of its folder", operation="load", subject=name)
        file.parent.mkdir(parents=True, exist_ok=True)
        content.tofile(file)
