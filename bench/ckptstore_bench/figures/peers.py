"""The ways to save and load that a training script has otherwise: torch.distributed.checkpoint, torch.save and safetensors.

dcp.async_save runs twice: as users call it, and with the best setting for tensors on a CPU, which stages into shared memory that it keeps
(pinning and asynchronous staging need an accelerator). Its writer fsyncs its files by default.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import async_save as dcp_async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

AS_CALLED = "dcp.async_save as called"
SHARED_MEMORY = "dcp.async_save, shared-memory staging"


def open_process_group(folder: Path) -> None:
    """async_save needs a group with a CPU backend: gloo, with one process."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/gloo", rank=0, world_size=1)


def close_process_group() -> None:
    dist.destroy_process_group()


class AsyncSave:
    """dcp.async_save, with or without its shared-memory stager."""

    def __init__(self, folder: Path, *, shared_memory: bool) -> None:
        self._folder = folder / ("dcp-shared" if shared_memory else "dcp")
        options = StagingOptions(use_pinned_memory=False, use_shared_memory=True, use_async_staging=False, use_non_blocking_copy=False)
        self._stager = DefaultStager(options) if shared_memory else None

    def __call__(self, state: dict[str, Any]) -> tuple[float, float]:
        """(seconds until the call returned, seconds until the files were fsynced)."""
        shutil.rmtree(self._folder, ignore_errors=True)
        began_s = time.perf_counter()
        response: Any = dcp_async_save(state, checkpoint_id=self._folder, async_stager=self._stager)
        returned_s = time.perf_counter()
        getattr(response, "upload_completion", response).result()
        return returned_s - began_s, time.perf_counter() - began_s

    def close(self) -> None:
        if self._stager is not None:
            self._stager.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class SavedBy:
    """The same state in the files of each peer, and how each loads it into new tensors."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._torch_file = folder / "state.pt"
        self._safetensors_file = folder / "state.safetensors"
        self._dcp_folder = folder / "dcp-load"
        torch.save(state["model"], self._torch_file)
        safetensors.torch.save_file(state["model"], self._safetensors_file)
        dcp_save({"model": state["model"]}, checkpoint_id=self._dcp_folder)
        os.sync()
        self._shapes = {name: tensor.shape for name, tensor in state["model"].items()}

    def loaders(self) -> dict[str, tuple[list[Path], Callable[[], list[torch.Tensor]]]]:
        """By name: the files to make cold, and the load."""
        return {
            "torch.load": ([self._torch_file], self._load_torch),
            "safetensors": ([self._safetensors_file], self._load_safetensors),
            "dcp.load": (sorted(self._dcp_folder.iterdir()), self._load_dcp),
        }

    def _load_torch(self) -> list[torch.Tensor]:
        return list(torch.load(self._torch_file, weights_only=True).values())

    def _load_safetensors(self) -> list[torch.Tensor]:
        return list(safetensors.torch.load_file(self._safetensors_file).values())

    def _load_dcp(self) -> list[torch.Tensor]:
        """dcp loads in place, so new tensors are made for it here."""
        model = {name: torch.empty(shape) for name, shape in self._shapes.items()}
        dcp_load({"model": model}, checkpoint_id=self._dcp_folder)
        return list(model.values())
