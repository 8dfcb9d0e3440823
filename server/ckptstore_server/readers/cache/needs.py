"""What does the cache need of the rest of the daemon? The tree's word on what is at a path, and the node's own replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ckptstore_server.readers.cache.own_replica import OwnReplica
from ckptstore_server.readers.origin import FileVersion, Origin


class OpensFiles(Protocol):
    """What the cache needs of the tree."""

    async def open(self, path: str, version: str = "") -> tuple[FileVersion, Origin]: ...

    async def open_object(self, object_id: str) -> tuple[FileVersion, Origin]: ...


class FindsOwn(Protocol):
    async def __call__(self, file: FileVersion, origin: Origin, served: Callable[[int], None]) -> OwnReplica | None:
        """The own object's whole replica on this node, if there is one."""
        ...
