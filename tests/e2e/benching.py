"""`ckptstore bench` as an operator calls it from a shell, with nothing of this process's own settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("ckptstore")
TIMEOUT_S = 280


def run_bench(command: str, folder: Path, json_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CKPTSTORE_")}
    whole = [PROGRAM, "bench", command, "--folder", folder, "--json", json_file, *arguments]
    return subprocess.run(whole, env=inherited, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
