"""On what was this measured? Kept with every figure, since a ratio without its machine and versions says little."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("ckptstore", "torch", "safetensors", "numpy", "granian", "sqlalchemy", "xxhash")


def describe(folder: Path, *packages: str) -> dict[str, Any]:
    """The machine, the file system that `folder` is on, and the versions of what was measured; `packages` beside the usual ones."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "file_system": _file_system(folder),
        "versions": {name: found for name in (*PACKAGES, *packages) if (found := _version(name)) is not None} | _fio_version(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _fio_version() -> dict[str, str]:
    """Of the program that says what the disk itself can do, where it is installed."""
    if (program := shutil.which("fio")) is None:
        return {}
    return {"fio": subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()}


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(folder: Path) -> str:
    """`ext4 on /`: of the mount with the longest point that is above the folder."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text("utf-8").splitlines()]
    above = [(fields[1], fields[2]) for fields in mounts if folder.is_relative_to(fields[1])]
    point, kind = max(above, key=lambda pair: len(pair[0]))
    return f"{kind} on {point}"
