"""What an operator sees of the cache, and how they steer it. Blocking: any thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ckptstore.cache_messages import CachedModel, CachedModels, Evicted, Pinned
from ckptstore.errors import NotFound, TierUnavailable
from ckptstore.paths import check_tree_path, parent_and_name
from ckptstore.wire import CacheStatus
from ckptstore_server.readers.cache.cache import NAME, Cache
from ckptstore_server.readers.cache.pins import is_below
from ckptstore_server.readers.cache.shelf import Held
from ckptstore_tiers.posix_errors import from_os_error

T = TypeVar("T")

class CacheControl:
    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def status(self) -> CacheStatus:
        cache, records = self._cache, self._cache.records.all().values()
        held = cache.shelf.held()
        try:
            limit_bytes = cache.limit_bytes(cache.shelf.held_bytes) if cache.state in ("ok", "full") else 0
        except OSError:
            limit_bytes = 0
        return CacheStatus(
            state=cache.state,
            folder=str(cache.room.folder) if cache.room is not None else "",
            held_bytes=cache.shelf.held_bytes,
            limit_bytes=limit_bytes,
            pinned_bytes=sum(one.size_bytes for one in held if cache.shelf.is_pinned(one)),
            files=len(held),
            pins=cache.pins.paths,
            hits=sum(record.hits for record in records),
            misses=sum(record.misses for record in records),
            fetched_bytes=sum(record.fetched_bytes for record in records),
            saved_bytes=sum(record.saved_bytes for record in records),
            last_error=cache.last_error,
        )

    def models(self) -> CachedModels:
        """Every folder of which something is kept, or something was read."""
        records, held = self._cache.records.all(), self._by_model()
        found = [
            CachedModel(
                path=path,
                files=len(held.get(path, [])),
                held_bytes=sum(one.size_bytes for one in held.get(path, [])),
                pinned=any(self._cache.shelf.is_pinned(one) for one in held.get(path, [])),
                hits=record.hits if record else 0,
                misses=record.misses if record else 0,
                fetched_bytes=record.fetched_bytes if record else 0,
                saved_bytes=record.saved_bytes if record else 0,
                used_at_s=record.used_at_s if record else max(one.used_s for one in held[path]),
            )
            for path in {*records, *held}
            for record in [records.get(path)]
        ]
        return CachedModels(models=sorted(found, key=lambda model: (-model.used_at_s, model.path)))

    def _by_model(self) -> dict[str, list[Held]]:
        models: dict[str, list[Held]] = {}
        for held in self._cache.shelf.held():
            models.setdefault(parent_and_name(held.file.path)[0], []).append(held)
        return models

    def pin(self, path: str) -> Pinned:
        """What is at or below the path stays, durably at return. TierUnavailable without a disk to write that to."""
        self._change_pins("pin", self._cache.pins.add, check_tree_path(path, operation="pin"))
        return Pinned(paths=self._cache.pins.paths)

    def unpin(self, path: str) -> Pinned:
        if not self._change_pins("unpin", self._cache.pins.remove, check_tree_path(path, operation="unpin")):
            raise NotFound("nothing is pinned there", operation="unpin", subject=path, hint="`ckptstore cache status` lists the pins")
        return Pinned(paths=self._cache.pins.paths)

    def _change_pins(self, operation: str, change: Callable[[str], T], path: str) -> T:
        if self._cache.state not in ("ok", "full"):
            raise TierUnavailable(self._cache.last_error or "this node keeps no copies", operation=operation, subject=path, tier=NAME)
        try:
            return change(path)
        except OSError as error:
            self._cache.disk_refused(error)
            raise from_os_error(error, operation=operation, key=path, tier=NAME) from error

    def evict(self, path: str) -> Evicted:
        below = check_tree_path(path, operation="evict")
        gone = self._cache.evict(lambda held: is_below(held.file.path, below) and not self._cache.shelf.is_pinned(held))
        return Evicted(files=len(gone), size_bytes=sum(held.size_bytes for held in gone))
