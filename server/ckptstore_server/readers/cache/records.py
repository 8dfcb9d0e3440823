"""What has the cache done for each model? Opens that found everything here, opens that did not, bytes asked for and bytes fetched.

A model is a folder: the one that a file lies in. What was asked for and did not have to be fetched was saved. A reader that opens a whole
file by descriptor is served by the kernel, which tells nobody how much it read: it counts as one that read all of it.

Kept in a small document beside the cached files, written now and then: a kill loses the last minute of the counts, and nothing else.
Thread-safe.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from ckptstore.paths import parent_and_name
from ckptstore_server.readers.cache.documents import read_document, write_document

#: Models that are remembered; the ones not used for longest go.
REMEMBERED = 10_000


@dataclass
class Record:
    hits: int = 0
    misses: int = 0
    served_bytes: int = 0
    fetched_bytes: int = 0
    used_at_s: float = 0.0

    @property
    def saved_bytes(self) -> int:
        return max(0, self.served_bytes - self.fetched_bytes)


class Records:
    def __init__(self, place: Path) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._changed = False
        self._models: dict[str, Record] = {}

    def load(self) -> None:
        """OSError; a document that is damaged means that counting begins anew."""
        with self._lock:
            try:
                self._models = {model: Record(**counts) for model, counts in (read_document(self._place) or {}).items()}
            except TypeError:
                self._models = {}

    def save(self) -> None:
        with self._lock:
            if not self._changed:
                return
            self._changed = False
            found = {model: dataclasses.asdict(record) for model, record in self._models.items()}
        write_document(self._place, json.dumps(found).encode("utf-8"), durable=False)

    def opened(self, path: str, *, hit: bool) -> None:
        with self._lock:
            record = self._record(path)
            record.hits += hit
            record.misses += not hit
            record.used_at_s = time.time()

    def served(self, path: str, size_bytes: int) -> None:
        with self._lock:
            self._record(path).served_bytes += size_bytes

    def fetched(self, path: str, size_bytes: int) -> None:
        with self._lock:
            self._record(path).fetched_bytes += size_bytes

    def all(self) -> dict[str, Record]:
        with self._lock:
            return {model: dataclasses.replace(record) for model, record in self._models.items()}

    def _record(self, path: str) -> Record:
        model, self._changed = parent_and_name(path)[0], True
        if model not in self._models and len(self._models) >= REMEMBERED:
            del self._models[min(self._models, key=lambda name: self._models[name].used_at_s)]
        return self._models.setdefault(model, Record())
