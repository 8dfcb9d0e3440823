"""How do readers of the tree get the bytes of what was published? From the nearest replica, verified, without pulling in the whole object.

An object store's replica costs a request to open, so some stay open for those who come back for the next piece; all others are closed
after each read, since an open segment keeps its slot from the next save, and an open file its space from the eviction.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ckptstore.errors import ChecksumMismatch, NotFound, StaleVersion
from ckptstore_server.node import Node
from ckptstore_server.readers.origin import FileVersion
from ckptstore_server.replicas import MEMORY, Replicas
from ckptstore_server.verified_blocks import VerifiedBlocks
from ckptstore_tiers.checksums import BLOCK_BYTES, block_length
from ckptstore_tiers.private_copy import copy_bytes

#: So many replicas of object stores stay open, each for at most so long after its last use.
KEPT_OPEN, KEPT_OPEN_S = 32, 10.0


class PublishedOrigin:
    """An `Origin`: one for all objects of the store."""

    def __init__(self, node: Node, replicas: Replicas) -> None:
        self._node = node
        self._replicas = replicas
        self._lock = threading.Lock()
        self._idle: list[tuple[float, VerifiedBlocks]] = []  # the one used longest ago first

    def read_into(self, file: FileVersion, offset_bytes: int, into: memoryview) -> None:
        view = into.cast("B")
        with self._opened(file) as blocks:
            while len(view):
                done = self._fill(blocks, offset_bytes, view)
                offset_bytes += done
                view = view[done:]

    def _fill(self, blocks: VerifiedBlocks, offset_bytes: int, view: memoryview) -> int:
        """As many whole blocks as there are, straight into the caller's memory; else a part of one. How many bytes that was."""
        index, skipped = divmod(offset_bytes, BLOCK_BYTES)
        stop = offset_bytes + len(view)
        if stop != blocks.file.size_bytes:
            stop -= stop % BLOCK_BYTES
        if not skipped and stop > offset_bytes:
            blocks.fill(index, view[: stop - offset_bytes])
            return stop - offset_bytes
        with self._node.scratch.borrow() as scratch:
            block = scratch[: block_length(index, blocks.file.size_bytes)]
            blocks.fill(index, block)
            wanted = block[skipped : skipped + len(view)]
            copy_bytes(wanted, view[: len(wanted)])
            return len(wanted)

    @contextmanager
    def _opened(self, file: FileVersion) -> Iterator[VerifiedBlocks]:
        blocks = self._reopened(file.version)
        try:
            blocks = blocks or VerifiedBlocks(self._node, self._replicas, self._node.catalog.object(file.version))
            yield blocks
        except (NotFound, ChecksumMismatch) as error:
            if self._node.catalog.replicas(file.version):
                raise
            raise StaleVersion("it was removed, and its bytes are gone", operation="read", subject=file.path) from error
        finally:
            if blocks is not None:
                self._put_back(blocks)

    def _reopened(self, object_id: str) -> VerifiedBlocks | None:
        with self._lock:
            for position, (_, blocks) in enumerate(self._idle):
                if blocks.file.object_id == object_id:
                    return self._idle.pop(position)[1]
        return None

    def _put_back(self, blocks: VerifiedBlocks) -> None:
        if blocks.tier in (None, MEMORY) or self._node.handle(str(blocks.tier)).settings.kind != "object":
            blocks.close()
            return
        with self._lock:
            self._idle.append((time.monotonic(), blocks))
            surplus = [self._idle.pop(0)] if len(self._idle) > KEPT_OPEN else []
        for _, old in surplus:
            old.close()

    def close_idle(self, *, after_s: float = KEPT_OPEN_S) -> None:
        """Close what nobody has read from for so long."""
        limit_s = time.monotonic() - after_s
        with self._lock:
            old = [blocks for used_s, blocks in self._idle if used_s <= limit_s]
            self._idle = [(used_s, blocks) for used_s, blocks in self._idle if used_s > limit_s]
        for blocks in old:
            blocks.close()
