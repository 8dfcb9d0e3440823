"""What did the last daemon leave in the cache's folder? Known from names, sizes and the heads of maps: no data is read.

Files without a partner, and maps that are none, are what a crash left in the middle of making or removing a copy: they go.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ckptstore.errors import ChecksumMismatch
from ckptstore_server.readers.cache import block_file
from ckptstore_server.readers.cache.block_map import describe
from ckptstore_server.readers.cache.shelf import Held


def left_behind(folder: Path) -> Iterator[Held]:
    """Every copy that is there. OSError."""
    maps = {place.stem: place for place in folder.glob("*.map")}
    for stray in folder.iterdir():
        if stray.stem not in maps or stray.suffix not in (".map", ".data"):
            stray.unlink(missing_ok=True)
    for version, place in maps.items():
        try:
            file = describe(place)
            data = block_file.data_place(folder, version).stat()
        except (ChecksumMismatch, FileNotFoundError):
            block_file.remove(folder, version)
            continue
        yield Held(file, min(data.st_blocks * 512, file.size_bytes), place.stat().st_mtime, data.st_mtime)
