"""Which paths stay, whatever else is read? A set of files and folders, durable when `add` and `remove` return. Thread-safe."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from ckptstore_server.readers.cache.documents import read_document, write_document


def is_below(path: str, folder: str) -> bool:
    """Whether a path is this one, or lies below it."""
    return path == folder or folder == "/" or path.startswith(f"{folder}/")


class Pins:
    def __init__(self, place: Path) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._paths: frozenset[str] = frozenset()

    def load(self) -> None:
        """OSError."""
        found = read_document(self._place)
        self._paths = frozenset(path for path in found if isinstance(path, str)) if isinstance(found, list) else frozenset()

    def rewrite(self) -> None:
        """Durably, on a disk that may have lost them. OSError."""
        with self._lock:
            self._keep(self._paths)

    def add(self, path: str) -> None:
        with self._lock:
            self._keep(self._paths | {path})

    def remove(self, path: str) -> bool:
        """Whether anything was pinned there: the path itself, or what is below it."""
        with self._lock:
            left = frozenset(pinned for pinned in self._paths if not is_below(pinned, path))
            if left == self._paths:
                return False
            self._keep(left)
            return True

    def _keep(self, paths: frozenset[str]) -> None:
        write_document(self._place, json.dumps(sorted(paths)).encode("utf-8"), durable=True)
        self._paths = paths

    def holds(self, path: str) -> bool:
        return any(is_below(path, pinned) for pinned in self._paths)

    @property
    def paths(self) -> list[str]:
        return sorted(self._paths)
