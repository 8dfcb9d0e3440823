"""What does the disk itself do? fio with O_DIRECT: 4 MiB blocks, four in flight, fsync at the end, in the folder that the tier is in."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ckptstore.errors import ConfigInvalid

BLOCK = "4M"
IN_FLIGHT = 4
TIMEOUT_S = 300


class Fio:
    def __init__(self, folder: Path, size_bytes: int) -> None:
        program = shutil.which("fio")
        if program is None:
            raise ConfigInvalid("the program fio is missing", operation="bench", hint="apt-get install fio")
        folder.mkdir(parents=True, exist_ok=True)
        self._command = [
            program, "--name=figures", f"--directory={folder}", "--filename=fio.data", f"--size={size_bytes}", f"--bs={BLOCK}",
            "--direct=1", "--ioengine=libaio", f"--iodepth={IN_FLIGHT}", "--end_fsync=1", "--output-format=json", "--thread",
        ]  # fmt: skip
        self._file = folder / "fio.data"

    def write_s(self) -> float:
        """Seconds to write and fsync a new file of the size."""
        self._file.unlink(missing_ok=True)
        return self._seconds("write")

    def read_s(self) -> float:
        """Seconds to read the file; `write_s` has made it."""
        return self._seconds("read")

    def _seconds(self, direction: str) -> float:
        answer = subprocess.run([*self._command, f"--rw={direction}"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        job: dict[str, Any] = json.loads(answer.stdout)["jobs"][0][direction]
        return float(job["io_bytes"]) / float(job["bw_bytes"])
