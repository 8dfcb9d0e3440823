"""How much does a posix tier hold, and does one more object fit?

A node's own root, and any root with a configured capacity, is walked once when the tier is opened; after that the count is
kept in memory, so that asking costs nothing however many objects there are. A shared root without a capacity is not walked
(a thousand nodes would each walk all of it): its use is what its file system reports.

Space is reserved before the first byte of an object is written and becomes used when the object is visible, so that several
puts at once cannot together pass the capacity. Any thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptstore.errors import TierFull
from ckptstore_tiers.interface import TierUsage
from ckptstore_tiers.keys import COPIES, UNFINISHED


def device_space(folder: Path) -> tuple[int, int]:
    """(size, free) in bytes of the file system of `folder`, as `df` counts its percentage: what is set aside for root, or by a quota, is
    neither, or a disk would be full for us long before it is for anybody. Raises OSError if it does not answer."""
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree + found.f_bavail) * found.f_frsize, found.f_bavail * found.f_frsize


def walk_size_bytes(root: Path) -> int:
    """The sizes of all files below `root`, unfinished ones and copies aside. What vanishes meanwhile does not count."""
    total = 0
    for folder, folders, files in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name not in (UNFINISHED, COPIES)]
        for name in files:
            try:
                total += (Path(folder) / name).lstat().st_size
            except FileNotFoundError:
                continue
    return total


class Space:
    def __init__(self, root: Path, *, tier: str, shared: bool, capacity_bytes: int | None) -> None:
        self._root = root
        self._tier = tier
        self._capacity_bytes = capacity_bytes
        self._counted = capacity_bytes is not None or not shared
        self._used_bytes = walk_size_bytes(root) if self._counted else 0
        self._reserved_bytes = 0
        self._lock = threading.Lock()

    @contextmanager
    def reserved(self, size_bytes: int, *, operation: str, key: str) -> Iterator[None]:
        """Hold room for a file during a `with` block; TierFull, with the figures, if the capacity has none."""
        with self._lock:
            used = self._used_bytes + self._reserved_bytes
            if self._capacity_bytes is not None and used + size_bytes > self._capacity_bytes:
                raise TierFull(
                    f"{size_bytes} bytes do not fit: {used} of {self._capacity_bytes} bytes are used",
                    operation=operation,
                    subject=key,
                    tier=self._tier,
                    hint="remove checkpoints, or raise the tier's `capacity`",
                )
            self._reserved_bytes += size_bytes
        try:
            yield
        finally:
            with self._lock:
                self._reserved_bytes -= size_bytes

    def changed(self, by_bytes: int) -> None:
        """Note that files of so many bytes have become visible, or, negative, have gone."""
        with self._lock:
            self._used_bytes = max(0, self._used_bytes + by_bytes)

    def usage(self) -> TierUsage:
        """Raises OSError if the file system does not answer."""
        device_bytes, free_bytes = device_space(self._root)
        with self._lock:
            used = self._used_bytes if self._counted else device_bytes - free_bytes
            if self._capacity_bytes is not None:
                free_bytes = min(free_bytes, max(0, self._capacity_bytes - used - self._reserved_bytes))
        return TierUsage(used, self._capacity_bytes if self._capacity_bytes is not None else device_bytes, free_bytes)
