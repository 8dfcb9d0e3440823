"""What does the cache hold, how much of it, and who goes for whom?

Bookkeeping only: it says which versions have to go, and `cache` removes their files. A version is a candidate unless it is pinned or
busy. First go earlier versions of a file that has a newer one, then whatever the policy says; where a path has a quota, what lies below
that path. Nothing that is not a copy is ever on this shelf: what the store's own tiers hold is not the cache's to evict.

Thread-safe.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ckptstore_server.readers.cache.pins import Pins, is_below
from ckptstore_server.readers.cache.policy import S3Fifo
from ckptstore_server.readers.origin import FileVersion


@dataclass
class Held:
    """One version on the disk; `size_bytes` are those of the blocks that are there."""

    file: FileVersion
    size_bytes: int = 0
    used_s: float = field(default_factory=time.time)
    #: when the last of its bytes came in, or all of them were compared with their checksums
    scrubbed_s: float = field(default_factory=time.time)


class Shelf:
    def __init__(self, pins: Pins, quotas: Mapping[str, int]) -> None:
        self._pins = pins
        self._quotas = dict(quotas)
        self._lock = threading.Lock()
        self._held: dict[str, Held] = {}
        self._policy: S3Fifo[str] = S3Fifo()
        self._asked_s = time.time()
        self._newest: dict[str, str] = {}  # path → the version that was opened last

    # --- what is here --------------------------------------------------------------------------------------------------------------

    def __contains__(self, version: str) -> bool:
        return version in self._held

    @property
    def held_bytes(self) -> int:
        return self._policy.held_bytes

    def held(self) -> list[Held]:
        with self._lock:
            return list(self._held.values())

    def get(self, version: str) -> Held | None:
        return self._held.get(version)

    def newest(self, path: str) -> str | None:
        """The version of this path that was opened last."""
        return self._newest.get(path)

    def used_since_asked(self) -> list[Held]:
        """What was used since the last call of this."""
        since_s, self._asked_s = self._asked_s, time.time()
        return [held for held in self.held() if held.used_s >= since_s]

    def is_pinned(self, held: Held) -> bool:
        """Of a pinned path the newest version stays, the others may go."""
        return self._pins.holds(held.file.path) and not self._is_outdated(held)

    def pinned_bytes(self) -> int:
        return sum(held.size_bytes for held in self.held() if self.is_pinned(held))

    def _is_outdated(self, held: Held) -> bool:
        return self._newest.get(held.file.path) != held.file.version

    # --- coming and going ----------------------------------------------------------------------------------------------------------

    def found(self, left_behind: Iterable[Held]) -> None:
        """What a former daemon left, or an outage of the disk; whatever else was here is not any more."""
        ordered = sorted(left_behind, key=lambda held: held.used_s)
        with self._lock:
            self._held, self._policy = {}, S3Fifo()
            for held in ordered:
                self._held[held.file.version] = held
                self._policy.admit(held.file.version, held.size_bytes, proven=True)
            self._newest = {held.file.path: held.file.version for held in ordered} | self._newest

    def opened(self, file: FileVersion, *, note: bool = True) -> None:
        """It is what its path stands for now; with `note`, to somebody who reads it."""
        with self._lock:
            self._newest[file.path] = file.version
            held = self._held.get(file.version)
            if note and held is not None:
                held.used_s = time.time()
                self._policy.use(file.version)

    def put(self, file: FileVersion) -> None:
        """A file without blocks; one of the same version that was there is no longer."""
        with self._lock:
            self._policy.forget(file.version)
            self._held[file.version] = Held(file)
            self._policy.admit(file.version)

    def resize(self, version: str, size_bytes: int) -> None:
        with self._lock:
            if (held := self._held.get(version)) is not None:
                held.size_bytes = size_bytes
                self._policy.resize(version, size_bytes)

    def remove(self, version: str) -> bool:
        """Whether it was here."""
        with self._lock:
            return self._remove(version)

    def _remove(self, version: str) -> bool:
        self._policy.forget(version)
        return self._held.pop(version, None) is not None

    # --- room ----------------------------------------------------------------------------------------------------------------------

    def grow(self, version: str, by_bytes: int, limit_bytes: int, is_busy: Callable[[str], bool]) -> tuple[bool, list[str]]:
        """Count more bytes of a version; whether there is room for them, and which versions are off the shelf for it.

        One call at a time, with the files of what went gone before the next: `limit_bytes` counts on the room that they leave.
        """
        gone: list[str] = []
        with self._lock:
            held = self._held.get(version)
            if held is None:
                return False, gone
            may_go = self._may_go(lambda other: other == version or is_busy(other))
            for path, quota_bytes in self._quotas.items():
                if is_below(held.file.path, path) and not self._make_room_below(path, quota_bytes - by_bytes, may_go, gone):
                    return False, gone
            while self._policy.held_bytes + by_bytes > limit_bytes:
                if not self._evict_one(may_go, gone):
                    return False, gone
            held.size_bytes += by_bytes
            self._policy.resize(version, held.size_bytes)
        return True, gone

    def shrink(self, limit_bytes: int, is_busy: Callable[[str], bool]) -> list[str]:
        """The versions that are off the shelf, so that no more than so much is held, as far as they may go."""
        gone: list[str] = []
        with self._lock:
            may_go = self._may_go(is_busy)
            while self._policy.held_bytes > limit_bytes and self._evict_one(may_go, gone):
                pass
        return gone

    def within_quotas(self, is_busy: Callable[[str], bool]) -> list[str]:
        """The versions that are off the shelf, so that every quota is kept, as far as they may go: quotas may be less than they were."""
        gone: list[str] = []
        with self._lock:
            for path, quota_bytes in self._quotas.items():
                self._make_room_below(path, quota_bytes, self._may_go(is_busy), gone)
        return gone

    def _may_go(self, stays: Callable[[str], bool]) -> Callable[[str], bool]:
        return lambda version: not stays(version) and not self.is_pinned(self._held[version])

    def _make_room_below(self, path: str, limit_bytes: int, may_go: Callable[[str], bool], gone: list[str]) -> bool:
        """Whether what is held below a path is within its quota, perhaps with others gone."""

        def below(version: str) -> bool:
            return is_below(self._held[version].file.path, path)

        while sum(held.size_bytes for version, held in self._held.items() if below(version)) > limit_bytes:
            if not self._evict_one(lambda version: below(version) and may_go(version), gone):
                return False
        return True

    def _evict_one(self, may_go: Callable[[str], bool], gone: list[str]) -> bool:
        outdated = (version for version, held in self._held.items() if self._is_outdated(held) and may_go(version))
        victim = next(outdated, None) or self._policy.evict(may_go)
        if victim is None:
            return False
        self._remove(victim)
        gone.append(victim)
        return True
