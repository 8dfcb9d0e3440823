"""The torchtitan example, whose checkpoints torchtitan's own manager writes through `ckpt://` at the first start."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.tools import filesystem

EXAMPLE: Any = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "examples" / "torchtitan_run.py"))


def own_manager(folder: str) -> CheckpointManager.Config:
    return CheckpointManager.Config(enable=True, folder=f"ckpt://{folder}", interval=2, keep_latest_k=0, last_save_model_only=False)


if __name__ == "__main__":
    if not filesystem.exists(f"ckpt://{sys.argv[1]}"):
        EXAMPLE["train"].__globals__["checkpoints_in"] = own_manager
    EXAMPLE["train"](sys.argv[1])
