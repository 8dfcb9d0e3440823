"""A source whose bytes may change under the reader, made into one whose bytes cannot.

Hashing before and after a write does not do: a byte that is changed and changed back in between escapes both. So each block of such a
source is copied once, and the copy is what is hashed and what is stored. Copies do not hold the interpreter's lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ckptstore_tiers.interface import BlockSource


def copy_bytes(view: memoryview, target: memoryview) -> None:
    """Copy all of `view` into `target`, of the same length, without the interpreter's lock: slices would hold it meanwhile."""
    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(view, np.uint8))


class PrivateCopy:
    """Another source whose blocks are copied into scratch before anybody looks at them.

    What is hashed and what is stored are then one private copy, whatever happens in the memory that it came from. A
    codec needs it: it must not be fed bytes that change under it.
    """

    def __init__(self, source: BlockSource) -> None:
        self._source = source

    @property
    def size_bytes(self) -> int:
        return self._source.size_bytes

    @property
    def stable(self) -> bool:
        return True

    def block(self, index: int, scratch: memoryview) -> memoryview:
        view = self._source.block(index, scratch)
        if self._source.stable:
            return view
        copy = scratch[: len(view)]
        copy_bytes(view, copy)
        return copy
