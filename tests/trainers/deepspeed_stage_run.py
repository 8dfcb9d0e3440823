"""The DeepSpeed example at the stage of ZeRO that its folder says: `/stage-3/…`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

EXAMPLE: Any = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "examples" / "deepspeed_run.py"))

if __name__ == "__main__":
    EXAMPLE["CONFIG"]["zero_optimization"]["stage"] = int(sys.argv[1].split("/")[1].removeprefix("stage-"))
    EXAMPLE["train"](sys.argv[1])
