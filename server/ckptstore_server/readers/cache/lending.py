"""What the daemon does for readers on the descriptor socket: FdLook, FdOpenFile and FdNeed.

Called on the connections' own threads, which may wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from ckptstore.errors import TierFull
from ckptstore.fd_messages import FdReady
from ckptstore.tree_messages import FdFile, FdLook, FdLooked, FdNeed, FdOpenFile
from ckptstore_server.readers.cache.cache import Cache
from ckptstore_server.readers.tree import Tree

T = TypeVar("T")

#: The longest that opening a file may take, in seconds: the tree asks an origin at most that long.
OPEN_TIMEOUT_S = 120.0


class CopyLending:
    def __init__(self, tree: Tree, cache: Cache, loop: asyncio.AbstractEventLoop) -> None:
        self._tree = tree
        self._cache = cache
        self._loop = loop

    def look(self, message: FdLook) -> FdLooked:
        return FdLooked(info=self._cache.tell(self._on_loop(self._tree.look(message.path))))

    def open_file(self, message: FdOpenFile) -> tuple[FdFile, int | None]:
        """A descriptor of the node's copy; none where no copy can be kept."""
        opening = self._cache.open(message.path, message.version) if message.path else self._cache.open_object(message.version)
        copy = self._on_loop(opening)
        file = copy.file
        try:
            whole = copy.whole  # asked before: what is whole stays so for this descriptor
            copy_id, fd = copy.descriptor()
        except TierFull:
            return FdFile(version=file.version, size_bytes=file.size_bytes, streamed=True), None
        return FdFile(version=file.version, copy_id=copy_id, size_bytes=file.size_bytes, whole=whole), fd

    def need(self, message: FdNeed) -> FdReady:
        if message.copy_id == message.version:  # a replica of the node's own, see `own_replica`: all of it is there
            return FdReady(size_bytes=message.size_bytes)
        copy = self._cache.loaded(message.version) or self._on_loop(self._cache.find(message.version))
        copy.wait(message.copy_id, message.offset_bytes, message.size_bytes, exact=message.exact)
        return FdReady(size_bytes=message.size_bytes)

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(OPEN_TIMEOUT_S)
