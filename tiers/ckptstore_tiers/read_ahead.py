"""Blocks for a put out of an object that is open in another tier: one by one, or fetched ahead where the tier offers that.

A reader that knows its tier is far away implements `ReadsAhead`. All other readers are asked for each block when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

from ckptstore_tiers.interface import BlockSource, ObjectReader
from ckptstore_tiers.sources import ReaderSource


@runtime_checkable
class ReadsAhead(Protocol):
    def blocks(self) -> AbstractContextManager[BlockSource]:
        """The object's blocks, fetched in the order of their indices before they are asked for; any other order is slow, not wrong."""
        ...


@contextmanager
def blocks_of(reader: ObjectReader) -> Iterator[BlockSource]:
    """The blocks of an open object for a put that reads about in order. The reader stays the caller's."""
    if isinstance(reader, ReadsAhead):
        with reader.blocks() as source:
            yield source
    else:
        yield ReaderSource(reader)
