"""An object's bytes as a stream, for readers that cannot open a replica themselves. Slower, never different.

An object that is far away is recalled while it is streamed: the store is read once, whoever streams it, and each block follows from the
unfinished file. Of one that only a part is wanted of, just these blocks are fetched, once for all readers of the node, into its cache.

Each 4 MiB block is read from the nearest replica, verified, and only then sent; a bad or vanished replica is passed over in the middle of
the stream. If no good copy of a block is left, the connection is broken off: the reader sees a short body, never wrong bytes.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from ckptstore.catalog.model import StoredFile
from ckptstore.errors import CkptStoreError, InvalidInput
from ckptstore_server.node import Node
from ckptstore_server.readers.cache.cache import Cache
from ckptstore_server.readers.cache.content import ContentAnswer, Extent
from ckptstore_server.recall import Recall, is_openable
from ckptstore_server.replicas import Replicas
from ckptstore_server.verified_blocks import VerifiedBlocks
from ckptstore_tiers.checksums import BLOCK_BYTES, block_length

_RANGE = re.compile(r"^bytes=([0-9]{0,18})-([0-9]{0,18})$")


class Content:
    def __init__(self, node: Node, replicas: Replicas, recall: Recall, cache: Cache) -> None:
        self._node = node
        self._replicas = replicas
        self._recall = recall
        self._cache = cache

    async def open(self, object_id: str, range_header: str | None, *, recall: bool = True) -> ObjectStream | ContentAnswer:
        """The stream for a request; InvalidInput for a range that is none, or lies outside. Its first block is already verified."""
        file = await self._node.query(self._node.catalog.object, object_id)
        extent = parse_range(range_header, file)
        status = 200 if range_header is None else 206
        headers = {"content-length": str(extent.stop - extent.start), "etag": f'"{file.root}"', "accept-ranges": "bytes"}
        if range_header is not None:
            headers["content-range"] = f"bytes {extent.start}-{extent.stop - 1}/{file.size_bytes}"
        located = await self._recall.locate(object_id, recall=recall)  # a far object comes nearer once, whoever streams it
        stream: ObjectStream | ContentAnswer
        if recall or is_openable(located):
            stream = ObjectStream(self._node, self._replicas, file, extent, status, headers)
        else:
            stream = ContentAnswer(status, headers, await self._cache.open_object(object_id), extent, exact=True)
        await stream.start()
        return stream


def parse_range(header: str | None, file: StoredFile) -> Extent:
    """A single HTTP range, as RFC 9110 section 14 writes it; the whole object without one."""
    if header is None:
        return Extent(0, file.size_bytes)
    match = _RANGE.match(header)
    first, last = match.groups() if match else ("", "")
    if first:
        start, stop = int(first), min(int(last) + 1 if last else file.size_bytes, file.size_bytes)
    elif last:
        start, stop = max(0, file.size_bytes - int(last)), file.size_bytes
    else:
        raise InvalidInput(f"{header!r} is not one range of bytes", operation="read", subject=file.key)
    if start >= stop:
        raise InvalidInput(f"the range {header!r} lies outside the {file.size_bytes} bytes", operation="read", subject=file.key)
    return Extent(start, stop)


class ObjectStream:
    """One answer to GET content. Used by one request; the blocks are read on the read executor."""

    def __init__(
        self, node: Node, replicas: Replicas, file: StoredFile, extent: Extent, status: int, headers: dict[str, str]
    ) -> None:
        self._node = node
        self._extent = extent
        self._blocks = VerifiedBlocks(node, replicas, file)
        self._first: bytes | None = None
        self.status = status
        self.headers = headers

    async def start(self) -> None:
        """Read the first block, so that an object without a good replica is an error response and not a broken stream."""
        if self._extent.start < self._extent.stop:
            try:
                self._first = await self._node.run(self._node.read_executor, self._read, self._extent.start // BLOCK_BYTES)
            except CkptStoreError:
                self._blocks.close()
                raise

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            for index in range(self._extent.start // BLOCK_BYTES, -(-self._extent.stop // BLOCK_BYTES)):
                block = self._first
                self._first = None
                if block is None:
                    block = await self._node.run(self._node.read_executor, self._read, index)
                begin = index * BLOCK_BYTES
                yield block[max(0, self._extent.start - begin) : self._extent.stop - begin]
        finally:
            self._blocks.close()

    def _read(self, index: int) -> bytes:
        with self._node.scratch.borrow() as scratch:
            view = scratch[: block_length(index, self._blocks.file.size_bytes)]
            self._blocks.fill(index, view)
            return bytes(view)
