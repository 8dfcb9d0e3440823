"""When is a peer's file durable? When it and every folder above it up to the contender's own have been fsynced, as the store does."""

from __future__ import annotations

import os
from pathlib import Path


def fsync_all(top: Path) -> None:
    """Every file below `top`, then the folders, innermost first, `top` included."""
    for folder, _, files in os.walk(top, topdown=False):
        for name in files:
            _fsync(Path(folder) / name, os.O_RDONLY)
        _fsync(Path(folder), os.O_RDONLY | os.O_DIRECTORY)
    if top.is_file():
        _fsync(top, os.O_RDONLY)
    _fsync(top.parent, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(place: Path, flags: int) -> None:
    fd = os.open(place, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
