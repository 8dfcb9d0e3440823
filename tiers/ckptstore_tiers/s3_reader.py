"""How bytes come back from S3: ranged GETs, several at once, received straight into the caller's buffer.

A body that breaks is asked for again from where it broke. The ETag of the first HEAD pins the content: it is compared with every
answer's own, since some servers refuse or ignore If-Match; with `if_match` it is asked for all the same, and a server that heeds it
answers without a body. Block digests are the caller's to check. A reader may be used from several
threads; `read_into` returns, or raises, only when nobody writes into the buffer any more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from botocore.exceptions import IncompleteReadError

from ckptstore.errors import ChecksumMismatch, NotFound
from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.s3_blocks import S3Blocks
from ckptstore_tiers.s3_buffers import OBJECT_MEMORY_BYTES, PartBuffers
from ckptstore_tiers.s3_connection import S3Connection, StoredObject

#: Received at a time; how often the receiver learns what has arrived.
_RECEIVE_BYTES = BLOCK_BYTES
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/")


def pieces(body: Any, view: memoryview) -> Iterator[int]:
    """Fill `view` from a response's body, telling after each piece how long it was; a body that ends early raises."""
    filled = 0
    while filled < len(view):
        count = body.readinto(view[filled : filled + _RECEIVE_BYTES])
        if count == 0:
            raise IncompleteReadError(actual_bytes=filled, expected_bytes=len(view))
        filled += count
        yield count


class S3Reader:
    """An open S3 object: its size, its ETag, and a connection to ask."""

    def __init__(
        self,
        connection: S3Connection,
        executor: ThreadPoolExecutor,
        buffers: PartBuffers,
        stored: StoredObject,
        *,
        if_match: bool = False,
    ) -> None:
        self._connection = connection
        self._executor = executor
        self._buffers = buffers
        self._stored = stored
        self._condition = {"IfMatch": stored.etag} if if_match and stored.etag else {}

    @property
    def size_bytes(self) -> int:
        return self._stored.size_bytes

    def fileno(self) -> int | None:
        return None

    def close(self) -> None:
        """Nothing is held between reads."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        view = buffer.cast("B")
        if offset < 0 or offset + len(view) > self.size_bytes:
            raise ChecksumMismatch(
                f"bytes {offset} to {offset + len(view)} were asked of an object of {self.size_bytes}",
                operation="read",
                subject=self._stored.key,
                tier=self._connection.tier,
            )
        step = self._connection.window.part_bytes(len(view), held=False)
        if len(view) <= step:
            self._read_range(offset, view)
            return
        starts = range(0, len(view), step)
        ranges = [
            self._executor.submit(self._read_range, offset + start, view[start : start + step]) for start in starts
        ]
        try:
            for one in ranges:
                one.result()
        finally:
            for one in ranges:
                one.cancel()
            wait(ranges)

    def blocks(self) -> S3Blocks:
        """The whole object as the source of a put, several ranges ahead of it."""
        range_bytes = self._connection.window.part_bytes(self.size_bytes, held=True)
        return S3Blocks(
            self.size_bytes,
            self._read_range,
            self._executor,
            self._buffers,
            range_bytes=range_bytes,
            ranges_ahead=max(2, min(self._connection.window.figures.parallel + 1, OBJECT_MEMORY_BYTES // range_bytes)),
        )

    def read_parts(self, offset: int, size_bytes: int, parts: Iterator[memoryview]) -> None:
        """Fill one view after the other, `size_bytes` in all, by one request; the next view is asked for when one is full."""
        self._receive(offset, size_bytes, parts, lambda count: None)

    def _read_range(self, start: int, view: memoryview, arrived: Callable[[int], None] = lambda count: None) -> None:
        """Fill `view` from `start`, telling what has arrived."""
        self._receive(start, len(view), iter((view,)), arrived)

    def _receive(self, start: int, size_bytes: int, parts: Iterator[memoryview], arrived: Callable[[int], None]) -> None:
        """Fill `parts` from `start`, telling what has arrived in all; each try goes on where the last one broke."""
        moved, view, filled = 0, memoryview(b""), 0

        def request(s3: Any) -> None:
            nonlocal moved, view, filled
            wanted, first = size_bytes - moved, start + moved
            if wanted == 0:
                return
            answer = s3.get_object(
                Bucket=self._connection.bucket,
                Key=self._connection.name(self._stored.key),
                Range=f"bytes={first}-{first + wanted - 1}",
                **self._condition,
            )
            try:
                self._check_answer(answer, first, wanted)
                while moved < size_bytes:
                    if filled == len(view):
                        view, filled = next(parts), 0
                    for count in pieces(answer["Body"], view[filled:]):
                        filled += count
                        moved += count
                        arrived(moved)
            finally:
                if moved < size_bytes:
                    answer["Body"].close()  # half an answer is left in this connection: it must not be used again

        with self._connection.window.slot() as transfer:
            self._connection.call("read", self._stored.key, request)
            transfer.moved_bytes = size_bytes
        next(parts, None)  # the last one is full

    def _check_answer(self, answer: dict[str, Any], first: int, wanted: int) -> None:
        if answer.get("ETag", "") != self._stored.etag:
            raise NotFound(
                "another object took its place while it was being read",
                operation="read",
                subject=self._stored.key,
                tier=self._connection.tier,
            )
        found = _CONTENT_RANGE.match(answer.get("ContentRange", ""))
        begin = int(found[1]) if found else 0  # a server that ignores Range sends everything, from the start
        if begin != first or answer["ContentLength"] != wanted:
            raise IncompleteReadError(actual_bytes=answer["ContentLength"], expected_bytes=wanted)
