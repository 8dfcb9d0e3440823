"""What do the formats of compressed files have in common? Frames, one for each 4 MiB block, and a table of their lengths at the end.

A format only says how bytes are laid out. Whatever a file claims is checked against the size of the file and of a block before
anything is allocated, so that a damaged or crafted file costs memory in proportion to its own size at most, and ends in
MalformedFile. That the content is the right one is for the block checksums to say, which every reader compares.

Formats and encoders hold nothing but buffers between calls: any thread.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from ckptstore_tiers.checksums import block_count

#: `read(offset, length)` gives exactly these bytes of a stored file.
ReadBytes = Callable[[int, int], bytes]


class MalformedFile(Exception):
    """The file, or one frame of it, is not what its format prescribes; the text says why."""


class NewerFormat(Exception):
    """The file is of a version that a later release writes; the text names it. Nothing is wrong with the file."""


@dataclass(frozen=True)
class FrameTable:
    """Where each block's frame lies. Every block but the last has BLOCK_BYTES."""

    size_bytes: int  # of the content
    frame_ends: array[int]  # in bytes from the first frame
    first: int = 0  # where that begins in the file

    def frame(self, index: int) -> tuple[int, int]:
        """Offset and length of the frame of block `index`."""
        start = self.frame_ends[index - 1] if index else 0
        return self.first + start, self.frame_ends[index] - start


def frame_table(size_bytes: int, frame_sizes: Sequence[int], *, first: int, end: int, largest: int) -> FrameTable:
    """The table, if frames of these lengths fill the file from `first` to `end` and can hold `size_bytes`; else MalformedFile."""
    if block_count(size_bytes) != len(frame_sizes):
        raise MalformedFile(f"{len(frame_sizes)} frames are not the blocks of {size_bytes} bytes")
    if any(not 0 < length <= largest for length in frame_sizes):
        raise MalformedFile(f"a frame's length is not between 1 and {largest} bytes")
    ends = array("Q", accumulate(frame_sizes))
    if first + (ends[-1] if ends else 0) != end:
        raise MalformedFile(f"its frames do not fill the bytes {first} to {end}")
    return FrameTable(size_bytes, ends, first)


class FrameEncoder(Protocol):
    """How one object becomes a file of the format. Several threads may encode blocks at once."""

    @property
    def head(self) -> bytes:
        """What the file begins with."""
        ...

    def frame(self, index: int, block: memoryview) -> bytes: ...

    def table(self, frame_sizes: Sequence[int], size_bytes: int) -> bytes:
        """What the file ends with. The whole file never has the length of its content: so a reader tells the two apart."""
        ...


class FileFormat(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def largest_frame_bytes(self) -> int: ...

    def recognises(self, tail: bytes) -> bool:
        """Whether a file that ends like this is of the format, in whatever version, or at least says so."""
        ...

    def read_table(self, file_bytes: int, read: ReadBytes) -> FrameTable:
        """Raises MalformedFile or NewerFormat."""
        ...

    def decode(self, frame: memoryview, block: memoryview) -> None:
        """Fill `block`, which has the right length. Raises MalformedFile."""
        ...
