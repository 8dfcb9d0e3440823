"""Small JSON documents beside the cached files: replaced whole, by rename, so that a crash leaves the old one or the new one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def read_document(place: Path) -> Any:
    """None if there is none, or it is damaged. OSError."""
    try:
        return json.loads(place.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def write_document(place: Path, data: bytes, *, durable: bool) -> None:
    """`durable`: on the disk at return. OSError."""
    fresh = place.with_suffix(".new")
    with open(fresh, "wb") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    fresh.rename(place)
    if durable:
        folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
