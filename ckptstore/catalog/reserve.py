"""How does the catalog still commit when the disk is full?

A preallocated file lies beside the database. When SQLite finds no space, the file is given up once, and the transaction is tried
again: a deletion that frees the disk can then be recorded. It is laid aside anew once the disk has several times its size free.
Thread-safe. Nothing depends on the file's being there after a crash.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

RESERVE_BYTES = 16 << 20
#: The reserve is restored when the disk has this many times its size free, so that it does not take the space it just gave.
RESTORE_FACTOR = 4
#: How often, at most, a lost reserve is looked after, in seconds.
RESTORE_PAUSE_S = 5.0


class Reserve:
    def __init__(self, database: Path, size_bytes: int = RESERVE_BYTES) -> None:
        self.path = database.with_name(database.name + ".reserve")
        self._size_bytes = size_bytes
        self._lock = threading.Lock()
        self._held = self.path.exists() and self.path.stat().st_size == size_bytes
        self._not_before_s = 0.0
        self.restore()

    @property
    def held(self) -> bool:
        return self._held

    def give_up(self) -> bool:
        """Free the reserve's space; False if it was given up already."""
        with self._lock:
            if not self._held:
                return False
            self.path.unlink(missing_ok=True)
            self._held = False
            self._not_before_s = time.monotonic() + RESTORE_PAUSE_S
            return True

    def restore(self) -> None:
        """Lay the reserve aside if it is missing and the disk has room; quietly nothing otherwise."""
        if self._held or time.monotonic() < self._not_before_s:
            return
        with self._lock:
            self._not_before_s = time.monotonic() + RESTORE_PAUSE_S
            with suppress(OSError):  # no space yet: the next look comes soon enough
                disk = os.statvfs(self.path.parent)
                if disk.f_bavail * disk.f_frsize < RESTORE_FACTOR * self._size_bytes:
                    return
                self._allocate()
                self._held = True

    def _allocate(self) -> None:
        descriptor = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self._size_bytes)
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
