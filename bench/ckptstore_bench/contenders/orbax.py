"""Orbax: its asynchronous checkpointer over a tree of numpy arrays, which is what a host without an accelerator has.

bf16 goes as its 16 bits (numpy has no such type), which orbax stores as it is. It does not fsync; that is done after it has finished.
"""

from __future__ import annotations

import shutil
import time
from typing import Any

import orbax.checkpoint as ocp
import torch

from ckptstore_bench.contenders.durable import fsync_all
from ckptstore_bench.contenders.interface import Saved, Setup
from ckptstore_bench.shared_state import open_state


def _arrays(state: dict[str, Any]) -> dict[str, Any]:
    return {
        group: {name: (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy() for name, tensor in part.items()}
        for group, part in state.items()
        if isinstance(part, dict)
    }


class OrbaxSaver:
    def __init__(self, setup: Setup) -> None:
        self._tree, self._disk, self._folder = _arrays(open_state(setup.state, setup.shape)), setup.disk, setup.folder / "checkpoint"
        self._checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())

    def save(self, number: int) -> Saved:
        shutil.rmtree(self._folder, ignore_errors=True)
        began_s = time.perf_counter()
        self._checkpointer.save(self._folder, args=ocp.args.PyTreeSave(self._tree))
        stall_s = time.perf_counter() - began_s
        self._checkpointer.wait_until_finished()
        fsync_all(self._folder)
        return Saved(stall_s, {self._disk: time.perf_counter() - began_s})

    def close(self) -> None:
        self._checkpointer.close()
        shutil.rmtree(self._folder, ignore_errors=True)
