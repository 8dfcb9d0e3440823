"""A file's bytes as an HTTP answer: the first byte at once, the rest as it comes; ranges and conditions as RFC 9110 writes them.

A body begins when its first block is there, so that a file that cannot be had is an error response and not a broken stream. While one block
is sent, the next ones are on their way and the next is read. Every block is verified before it is sent; if one cannot be had in the middle,
the connection is broken off, and the reader sees a short body, never wrong bytes.

The ETag is the version: strong, for it names these bytes and no others.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from ckptstore_server.readers.cache.cache import AnyCopy
from ckptstore_tiers.checksums import BLOCK_BYTES

#: Blocks that are on their way ahead of a stream.
BLOCKS_AHEAD = 16
#: The same where they are not kept, and so each in memory until it is sent.
HELD_AHEAD = 4
_RANGE = re.compile(r"^bytes=([0-9]{0,18})-([0-9]{0,18})$")


@dataclass(frozen=True)
class Extent:
    """Bytes `start` to `stop` (exclusive)."""

    start: int
    stop: int


@dataclass
class ContentAnswer:
    """Status, headers, and the bytes to send, none for an answer without a body."""

    status: int
    headers: dict[str, str]
    copy: AnyCopy
    extent: Extent
    #: what else lies in the file is not wanted
    exact: bool = False
    _first: bytes | None = field(default=None, repr=False)

    @property
    def is_bodiless(self) -> bool:
        return self.status not in (200, 206)

    async def start(self) -> None:
        """Have the first block; raises what keeps it from coming."""
        if self.extent.start < self.extent.stop:
            self._first = await self._block(self.extent.start // BLOCK_BYTES)

    async def chunks(self) -> AsyncIterator[bytes]:
        first, last = self.extent.start // BLOCK_BYTES, -(-self.extent.stop // BLOCK_BYTES)
        upcoming: deque[asyncio.Task[bytes]] = deque()
        self.copy.streams += 1
        try:
            block, self._first = self._first, None
            for index in range(first, last):
                block = block if block is not None else await upcoming.popleft()
                self._look_ahead(upcoming, index + 1, last)
                begin = index * BLOCK_BYTES
                yield block[max(0, self.extent.start - begin) : self.extent.stop - begin]
                block = None
        finally:
            self.copy.streams -= 1
            for task in upcoming:
                task.cancel()

    def _look_ahead(self, upcoming: deque[asyncio.Task[bytes]], index: int, last: int) -> None:
        """Have the next block read, and those behind it fetched; in memory, and fewer of them, if the disk does not take them."""
        depth = HELD_AHEAD if self.copy.passes_through else 1
        for following in range(index + len(upcoming), min(index + depth, last)):
            upcoming.append(asyncio.create_task(self._block(following)))
        self.copy.fetch(range(index + 1, min(index + 1 + BLOCKS_AHEAD, last)))

    async def _block(self, index: int) -> bytes:
        begin = index * BLOCK_BYTES
        return await self.copy.block(index, max(begin, self.extent.start), min(begin + BLOCK_BYTES, self.extent.stop), exact=self.exact)


def answer(copy: AnyCopy, request_headers: Mapping[str, str], *, etag: str | None = None) -> ContentAnswer:
    """What to say to a GET or HEAD with these headers (names in lower case). `etag`: another one than the version, unquoted."""
    size_bytes = copy.file.size_bytes
    tag = f'"{etag or copy.file.version}"'
    headers = {"etag": tag, "accept-ranges": "bytes"}
    wanted = request_headers.get("if-none-match")
    if wanted is not None and _names(wanted, tag):
        return ContentAnswer(304, headers, copy, Extent(0, 0))
    condition = request_headers.get("if-range")
    ranged = request_headers.get("range") if condition is None or condition == tag else None
    match = _RANGE.match(ranged) if ranged is not None else None
    first, last = match.groups() if match is not None else ("", "")
    if not _is_range(first, last):  # none, or one to be ignored: of several pieces, of other units, no range
        return ContentAnswer(200, headers | {"content-length": str(size_bytes)}, copy, Extent(0, size_bytes))
    extent = _extent(first, last, size_bytes)
    if extent is None:
        return ContentAnswer(416, headers | {"content-range": f"bytes */{size_bytes}", "content-length": "0"}, copy, Extent(0, 0))
    headers["content-range"] = f"bytes {extent.start}-{extent.stop - 1}/{size_bytes}"
    return ContentAnswer(206, headers | {"content-length": str(extent.stop - extent.start)}, copy, extent)


def _is_range(first: str, last: str) -> bool:
    return int(first) <= int(last) if first and last else bool(first or last)


def _extent(first: str, last: str, size_bytes: int) -> Extent | None:
    """None if nothing of the file lies in it."""
    if first:
        start, stop = int(first), min(int(last) + 1, size_bytes) if last else size_bytes
    else:
        start, stop = max(0, size_bytes - int(last)), size_bytes
    return Extent(start, stop) if start < stop else None


def _names(header: str, tag: str) -> bool:
    """Whether an If-None-Match header names the tag; weak ones count, as a cache that has the bytes has them."""
    return header.strip() == "*" or tag in (part.strip().removeprefix("W/") for part in header.split(","))
