"""A file of the store's own that lies whole, as it is, in one of this node's tiers: its replica is the copy, nothing is cached again.

The tier's file is never changed, and is held by the descriptor when the tier evicts it. Its bytes were verified when they were stored
there; a stream verifies each block again, and takes a damaged one from the next replica, through the origin.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ckptstore.catalog.model import StoredFile
from ckptstore.errors import ChecksumMismatch, NotFound, TierUnavailable
from ckptstore_server.node import Node
from ckptstore_server.readers.origin import FileVersion, Origin
from ckptstore_server.replicas import Replicas, digests_of
from ckptstore_server.tier_handle import TierHandle
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests, block_length, digest
from ckptstore_tiers.interface import ObjectReader
from ckptstore_tiers.scratch import ScratchPool


class OwnReplica:
    """The same to its readers as `copy.Copy`. The reader closes when the last who uses this has let go."""

    whole = True
    streamed = passes_through = False

    def __init__(
        self,
        file: FileVersion,
        origin: Origin,
        reader: ObjectReader,
        expected: BlockDigests,
        *,
        scratch: ScratchPool,
        readers: ThreadPoolExecutor,
        served: Callable[[int], None],
    ) -> None:
        self.file = file
        self.streams = 0
        self._origin = origin
        self._reader = reader
        weakref.finalize(self, reader.close)
        self._expected = expected
        self._scratch = scratch
        self._readers = readers
        self._served = served

    @property
    def kept_bytes(self) -> int:
        return self.file.size_bytes

    def descriptor(self) -> tuple[str, int]:
        fd = self._reader.fileno()
        assert fd is not None, "only replicas that are plain files become one of these"
        self._served(self.file.size_bytes)
        return self.file.version, os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)

    def wait(self, copy_id: str, offset: int, size_bytes: int) -> None:
        """Everything is there."""

    def fetch(self, blocks: Sequence[int]) -> list[Future[bytes | None]]:
        return []

    async def on_disk(self) -> None:
        """It is."""

    async def block(self, index: int, offset: int, stop: int, *, exact: bool = False) -> bytes:
        self._served(stop - offset)
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, index)

    def _read(self, index: int) -> bytes:
        with self._scratch.borrow() as buffer:
            view = buffer[: block_length(index, self.file.size_bytes)]
            self._reader.read_into(index * BLOCK_BYTES, view)
            if digest(view) != self._expected.block(index):
                self._origin.read_into(self.file, index * BLOCK_BYTES, view)
                self._expected.check(index, view, operation="read", subject=self.file.path)
            return bytes(view)


class OwnReplicas:
    """Finds them. Callable as `needs.FindsOwn`."""

    def __init__(self, node: Node, replicas: Replicas) -> None:
        self._node = node
        self._replicas = replicas

    async def __call__(self, file: FileVersion, origin: Origin, served: Callable[[int], None]) -> OwnReplica | None:
        return await self._node.query(self._find, file, origin, served)

    def _find(self, file: FileVersion, origin: Origin, served: Callable[[int], None]) -> OwnReplica | None:
        stored = self._node.catalog.object(file.version)
        for handle, replica in self._replicas.recorded(stored.object_id):
            if handle not in self._node.node_local or replica.stored_bytes is not None:
                continue
            reader = self._opened(stored, handle)
            if reader is not None:
                self._node.catalog.touch([stored.object_id], handle.name)
                scratch, threads = self._node.scratch, self._node.read_executor
                return OwnReplica(file, origin, reader, digests_of(stored), scratch=scratch, readers=threads, served=served)
        return None

    def _opened(self, stored: StoredFile, handle: TierHandle) -> ObjectReader | None:
        try:
            with handle.watched() as tier:
                reader: ObjectReader = tier.open(stored.key, size_bytes=stored.size_bytes)
        except NotFound:
            self._replicas.missing(stored, handle.name)
        except ChecksumMismatch as error:
            self._replicas.damaged(stored, handle.name, error.why)
        except TierUnavailable:
            return None
        else:
            if reader.fileno() is not None:
                return reader
            reader.close()
        return None
