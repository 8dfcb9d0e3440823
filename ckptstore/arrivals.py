"""What passes through the pipe that tells a reader which blocks of a recalled object can be read: pairs of block numbers, nothing else.

Each message is 16 bytes, two numbers of 8 bytes in little-endian order: the first block, and the one behind the last. A message is
written in one piece and, being shorter than PIPE_BUF, never arrives in two.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

#: Room for 65,536 messages, an object of 256 GiB whose reader never looks; the most that a user may ask of Linux by default.
PIPE_BYTES = 1 << 20
_PAIR = struct.Struct("<QQ")


def pack_blocks(first: int, stop: int) -> bytes:
    return _PAIR.pack(first, stop)


def unpack_blocks(data: bytes) -> Iterator[tuple[int, int]]:
    """The pairs in what was read; what is no whole pair is left out."""
    yield from _PAIR.iter_unpack(data[: len(data) - len(data) % _PAIR.size])
