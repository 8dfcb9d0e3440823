"""A file that lies in pieces in memory: what is put when only some of a segment's tensors are to be stored.

Each block is gathered into the caller's scratch, so the bytes that are hashed and stored are a private copy whoever still writes into
the memory that they came from. Any number of threads at once, one scratch buffer each.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from ckptstore_tiers.checksums import BLOCK_BYTES, block_length
from ckptstore_tiers.private_copy import copy_bytes


class GatheredSource:
    """The pieces, one after the other. They stay the caller's, and in use until the put returns."""

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self._views = [view for piece in pieces if len(view := memoryview(piece).cast("B"))]
        self._starts: list[int] = []
        self._size_bytes = 0
        for view in self._views:
            self._starts.append(self._size_bytes)
            self._size_bytes += len(view)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def stable(self) -> bool:
        """True whoever writes into the pieces: a block is read once into scratch, and scratch is ours alone."""
        return True

    def block(self, index: int, scratch: memoryview) -> memoryview:
        begin = index * BLOCK_BYTES
        target = scratch[: block_length(index, self._size_bytes)]
        position = bisect_right(self._starts, begin) - 1
        filled = 0
        while filled < len(target):
            view, offset = self._views[position], begin + filled - self._starts[position]
            part = view[offset : offset + len(target) - filled]
            copy_bytes(part, target[filled : filled + len(part)])
            filled += len(part)
            position += 1
        return target
