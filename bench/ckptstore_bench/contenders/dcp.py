"""torch.distributed.checkpoint, four ways to save and one to load.

Its documentation's fast path on a machine without an accelerator: a stager that keeps its buffers in shared memory (pinned memory and
asynchronous staging need CUDA), reused from save to save; saving plans cached; and, against the GIL, the writer in a process of its own
(AsyncCheckpointerType.PROCESS, with automatic garbage collection off there). FileSystemWriter fsyncs its files by default.
"""

from __future__ import annotations

import os
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.checkpoint.state_dict_saver import async_save as dcp_async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from ckptstore_bench.contenders.interface import Saved, Setup
from ckptstore_bench.shared_state import empty_like, flat, open_state


def _open_group(folder: Path) -> None:
    """One process with gloo, which async_save needs; process-based saving opens a second group on MASTER_ADDR."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("DCP_DISABLE_AUTOMATIC_GC", "1")
    dist.init_process_group("gloo", init_method=f"file://{folder}/gloo", rank=0, world_size=1)


class Blocking:
    def __init__(self, setup: Setup) -> None:
        self._state, self._disk, self._folder = open_state(setup.state, setup.shape), setup.disk, setup.folder / "checkpoint"
        self._planner = DefaultSavePlanner(enable_plan_caching=True)
        _open_group(setup.folder)

    def save(self, number: int) -> Saved:
        shutil.rmtree(self._folder, ignore_errors=True)
        began_s = time.perf_counter()
        finish = self._begin()
        stall_s = time.perf_counter() - began_s
        if finish is not None:
            finish.result()
        return Saved(stall_s, {self._disk: time.perf_counter() - began_s})

    def _begin(self) -> Any:
        dcp_save(self._state, storage_writer=FileSystemWriter(self._folder), planner=self._planner)
        return None

    def close(self) -> None:
        dist.destroy_process_group()
        shutil.rmtree(self._folder, ignore_errors=True)


class AsyncThread(Blocking):
    kind = AsyncCheckpointerType.THREAD

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if 2 * len(setup.shape.tensors) > resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
            # The default strategy keeps a descriptor open for each shared tensor. This is what torch's documentation names instead.
            torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]
        options = StagingOptions(use_pinned_memory=False, use_shared_memory=True, use_async_staging=False, use_non_blocking_copy=False)
        self._stager = DefaultStager(options)

    def _begin(self) -> Any:
        response: Any = dcp_async_save(
            self._state,
            storage_writer=FileSystemWriter(self._folder),
            planner=self._planner,
            async_checkpointer_type=self.kind,
            async_stager=self._stager,
        )
        return getattr(response, "upload_completion", response)

    def close(self) -> None:
        self._stager.close()
        super().close()


class AsyncProcess(AsyncThread):
    kind = AsyncCheckpointerType.PROCESS


class AsCalled(Blocking):
    def _begin(self) -> Any:
        response: Any = dcp_async_save(self._state, checkpoint_id=self._folder)
        return getattr(response, "upload_completion", response)


class DcpLoader:
    """dcp.load fills what exists, so its tensors were made and touched before."""

    def __init__(self, setup: Setup) -> None:
        self._setup, self._folder = setup, setup.folder / "checkpoint"
        self._target = empty_like(setup.shape)
        _open_group(setup.folder)

    def prepare(self) -> list[Path]:
        dcp_save(open_state(self._setup.state, self._setup.shape), checkpoint_id=self._folder)
        return sorted(self._folder.iterdir())

    def load(self) -> dict[str, Any]:
        dcp_load(self._target, checkpoint_id=self._folder)
        return flat(self._target)

    def close(self) -> None:
        dist.destroy_process_group()
        shutil.rmtree(self._folder, ignore_errors=True)
