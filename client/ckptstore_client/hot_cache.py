"""How does a program steer what stays hot on a node? Warming, pinning, evicting, and what the copies were good for. Thread-safe."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ckptstore.cache_messages import CachedModel, CachedModels, Evicted, Pinned, WarmLine
from ckptstore.errors import CkptStoreError
from ckptstore.paths import check_tree_path
from ckptstore.wire import CacheStatus
from ckptstore_client.connection import Connection


class HotCache:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def warm(self, path: str, *, pin: bool = False, check: bool = False, wait: bool = True) -> Iterator[WarmLine]:
        """Fetch every file at or below `path` to the node: a line for each as it is there, and a last one with the sums.

        `check`: fetch nothing, and say how much of each is there; `pin`: let it stay; without `wait` the daemon goes on by itself.
        A file that cannot be had, or not be kept, is a line with a `problem`.
        """
        path = check_tree_path(path, operation="warm")
        api = self._connection.transport().api
        with api.stream("POST", "cache/warm", path=path, pin=_text(pin), check=_text(check), wait=_text(wait)) as response:
            for line in response.iter_lines():
                if line:
                    yield WarmLine.model_validate_json(line)

    def status(self) -> CacheStatus:
        return self._connection.run(lambda transport: transport.api.call("GET", "cache", CacheStatus))

    def models(self) -> list[CachedModel]:
        """What is kept of each folder, and what that was good for; what was used last comes first."""
        return self._connection.run(lambda transport: transport.api.call("GET", "cache/models", CachedModels)).models

    def pin(self, path: str) -> list[str]:
        """Have what is at or below `path` stay, once it is there; all pins."""
        return self._connection.run(lambda transport: transport.api.call("PUT", "cache/pins", Pinned, path=path)).paths

    def unpin(self, path: str) -> list[str]:
        """The pins that are left. NotFound if nothing is pinned there."""
        return self._connection.transport().api.call("DELETE", "cache/pins", Pinned, path=path).paths

    def evict(self, path: str) -> Evicted:
        """Give up the copies at or below `path` that are not pinned."""
        return self._connection.run(lambda transport: transport.api.call("DELETE", "cache/copies", Evicted, path=path))


def followed(lines: Iterator[WarmLine], progress: Callable[[int, int], None] | None) -> WarmLine:
    """The last line; `progress` hears how many bytes are there, and how many there will be."""
    here, last = 0, None
    for last in lines:
        here += 0 if last.done else last.held_bytes
        if progress is not None:
            progress(here, last.total_bytes)
    if last is None or not (last.done or last.begun):
        raise CkptStoreError("the daemon stopped in the middle", operation="warm", hint="see its log")
    return last


def _text(flag: bool) -> str:
    return "true" if flag else "false"
