"""torchtitan: `Trainer.Config(checkpoint=StoreCheckpointManager.Config(enable=True, folder="ckpt:///runs/gpt", async_mode="async"))`.

The hook is torchtitan's own: the field `checkpoint` of its trainer's configuration makes whatever manager the configuration in it belongs
to. This one is torchtitan's `CheckpointManager`. Overridden are the two methods that call PyTorch Distributed Checkpoint, which get our
`Writer` and `Reader`, the one that waits for staging, and the one that looks for the newest step. When to save, what to load at the start
and what to purge stays torchtitan's. Checkpoints that are not of this store (`initial_load_path` on disk, or what torchtitan's own manager
wrote into `ckpt://`) are loaded as torchtitan loads them.

torchtitan calls everything here in the trainer's thread, on every rank. With `async_mode="async"` a save returns when its bytes are
copied; torchtitan waits before the optimizer's next step until they are the daemon's, and before the next save until they are published.
"""

from __future__ import annotations

import re
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torchtitan.components.checkpointer import AsyncMode, CheckpointManager

from ckptstore.errors import InvalidInput, NotFound
from ckptstore_client.connecting import default_store
from ckptstore_client.process_group import resolved_together
from ckptstore_client.torch import Reader, Writer
from ckptstore_client.torch.writer import path_of

_SCHEME = "ckpt://"


class StoreCheckpointManager(CheckpointManager):  # type: ignore[misc]
    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):  # type: ignore[misc]
        """torchtitan's, with a `folder` that begins with "ckpt://". `async_mode` is "disabled" or "async"."""

        incremental: bool = False
        """Whether tensors that did not change are not written again."""

        def __post_init__(self) -> None:
            CheckpointManager.Config.__post_init__(self)
            if not self.folder.startswith(_SCHEME):
                hint = f'folder="{_SCHEME}/runs/gpt"'
                raise InvalidInput("the folder is not in the store", operation="make checkpoints", subject=self.folder, hint=hint)
            if self.async_mode == AsyncMode.ASYNC_WITH_PINNED_MEM:
                why = "the daemon's memory is what is staged into; there is no other to be pinned"
                raise InvalidInput(why, operation="make checkpoints", subject=self.folder, hint='async_mode="async"')

    def __init__(self, config: Config, **parts: Any) -> None:
        super().__init__(config, **parts)
        self._incremental = config.incremental

    @torch.no_grad()
    def dcp_save(self, state_dict: dict[str, Any], checkpoint_id: str, async_mode: AsyncMode, *_: Any, **__: Any) -> Future[Any] | None:
        step = _step_of(checkpoint_id)
        writer = Writer(checkpoint_id, step=step, replace=True, incremental=self._incremental)
        if async_mode == AsyncMode.DISABLED:
            save(state_dict, storage_writer=writer)
            return None
        saved: Any = async_save(state_dict, storage_writer=writer, process_group=self.pg)
        self.staging_future = saved.staging_completion
        published: Future[Any] = saved.upload_completion
        return published

    def _maybe_wait_for_staging(self) -> None:
        if self.staging_future is not None:
            self.staging_future.result()
            self.staging_future = None

    def dcp_load(self, state_dict: dict[str, Any], checkpoint_id: str, from_hf: bool, from_quantized: bool) -> None:
        if from_hf or not _is_saved(checkpoint_id):
            super().dcp_load(state_dict, checkpoint_id, from_hf, from_quantized)
            return
        load(state_dict, storage_reader=Reader(checkpoint_id))
        self.states["model"].load_state_dict(state_dict)

    def _find_load_step(self, folder: str = "") -> int:
        """The highest step, the same on all ranks."""
        steps = resolved_together(lambda: _steps_in(folder or self.folder))
        found: int = max([super()._find_load_step(folder), *steps])
        return found


def _steps_in(folder: str) -> list[int]:
    """Of the checkpoints that were saved into a folder of the store."""
    steps = (_step_of(entry.name) for entry in default_store().ls(path_of(folder)) if entry.kind == "checkpoint")
    return [step for step in steps if step is not None]


def _step_of(name: str) -> int | None:
    """What torchtitan's name for a checkpoint says."""
    match = re.fullmatch(r"step-(\d+)", name.rpartition("/")[2])
    return None if match is None else int(match[1])


def _is_saved(checkpoint_id: str) -> bool:
    """Whether it is a checkpoint that was saved here, and not a folder of files."""
    try:
        return checkpoint_id.startswith(_SCHEME) and default_store().stat(path_of(checkpoint_id)).kind == "checkpoint"
    except NotFound:
        return False
