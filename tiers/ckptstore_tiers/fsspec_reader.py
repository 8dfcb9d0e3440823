"""How an object of an fsspec backend is read: ranges straight from the backend, nothing held in between.

A reader may be used from several threads. Block digests are the caller's to check.
"""

from __future__ import annotations

from collections.abc import Callable

from ckptstore.errors import ChecksumMismatch


class FsspecReader:
    """An open object of an fsspec backend; it holds nothing between reads, so a deleted object is NotFound."""

    def __init__(self, tier: str, key: str, size_bytes: int, read_range: Callable[[int, memoryview], None]) -> None:
        self._tier = tier
        self._key = key
        self._read_range = read_range
        self._size_bytes = size_bytes

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        view = buffer.cast("B")
        if offset < 0 or offset + len(view) > self._size_bytes:
            raise ChecksumMismatch(
                f"bytes {offset} to {offset + len(view)} were asked of an object of {self._size_bytes}",
                operation="read",
                subject=self._key,
                tier=self._tier,
            )
        self._read_range(offset, view)

    def fileno(self) -> int | None:
        return None

    def close(self) -> None:
        """Nothing is held between reads."""
