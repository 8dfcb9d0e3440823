"""What does a zstd file look like that can be read from the middle? Frames of one block each, then a table of their sizes.

The format is Zstandard's own "seekable format", version 0.1.0
(https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md): ordinary frames, and
at the end a skippable frame that holds the table. `zstd -d` ignores the table and restores the file.

Whatever a table claims is checked against the size of the file and of a block before anything is allocated, so that a damaged
or crafted file costs at most memory in proportion to its own size, and ends in ChecksumMismatch.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import zstandard

from ckptstore.errors import ChecksumMismatch
from ckptstore_tiers.checksums import BLOCK_BYTES, block_count

SKIPPABLE_MAGIC = 0x184D2A5E
SEEKABLE_MAGIC = 0x8F92EAB1
#: What zstd may need for a block that does not compress: ZSTD_COMPRESSBOUND, and the frame's header and checksum.
MAX_FRAME_BYTES = BLOCK_BYTES + (BLOCK_BYTES >> 8) + 64

_HEADER = struct.Struct("<II")  # skippable magic, bytes that follow
_ENTRY = struct.Struct("<II")  # compressed size, decompressed size
_FOOTER = struct.Struct("<IBI")  # number of frames, descriptor, seekable magic
_HAS_CHECKSUMS, _RESERVED_BITS = 0x80, 0x7C


class MalformedTable(Exception):
    """The file does not end in a table that fits it; the text says why."""


@dataclass(frozen=True)
class SeekTable:
    """Where each block's frame lies. Every block but the last has BLOCK_BYTES."""

    size_bytes: int
    frame_ends: array[int]  # of each frame, in bytes from the start of the file

    def frame(self, index: int) -> tuple[int, int]:
        """Offset and length of the frame of block `index`."""
        start = self.frame_ends[index - 1] if index else 0
        return start, self.frame_ends[index] - start


def table_bytes(frame_sizes: list[int], size_bytes: int) -> bytes:
    """The skippable frame for an object of `size_bytes`, whose blocks were compressed to `frame_sizes`."""
    lengths = [BLOCK_BYTES] * len(frame_sizes)
    if lengths:
        lengths[-1] = size_bytes - BLOCK_BYTES * (len(lengths) - 1)
    entries = b"".join(_ENTRY.pack(*sizes) for sizes in zip(frame_sizes, lengths, strict=True))
    body = entries + _FOOTER.pack(len(frame_sizes), 0, SEEKABLE_MAGIC)
    return _HEADER.pack(SKIPPABLE_MAGIC, len(body)) + body


def read_table(file_bytes: int, read: Callable[[int, int], bytes]) -> SeekTable:
    """The table at the end of a file of `file_bytes`; `read(offset, length)` gives its bytes. Raises MalformedTable."""
    if file_bytes < _HEADER.size + _FOOTER.size:
        raise MalformedTable(f"{file_bytes} bytes are too few for a seek table")
    frames, descriptor, magic = _FOOTER.unpack(read(file_bytes - _FOOTER.size, _FOOTER.size))
    if magic != SEEKABLE_MAGIC or descriptor & _RESERVED_BITS:
        raise MalformedTable("it does not end in a seek table")
    entry_bytes = _ENTRY.size + (4 if descriptor & _HAS_CHECKSUMS else 0)
    body_bytes = frames * entry_bytes + _FOOTER.size
    start = file_bytes - body_bytes - _HEADER.size
    if start < 0:
        raise MalformedTable(f"its seek table speaks of {frames} frames, more than fit into {file_bytes} bytes")
    data = read(start, _HEADER.size + body_bytes)
    if _HEADER.unpack_from(data) != (SKIPPABLE_MAGIC, body_bytes):
        raise MalformedTable("its seek table has no valid header")
    return _checked(data[_HEADER.size : -_FOOTER.size], frames, entry_bytes, start)


def _checked(entries: bytes, frames: int, entry_bytes: int, frames_end: int) -> SeekTable:
    sizes, size_bytes = array("Q"), 0
    for index in range(frames):
        compressed, decompressed = _ENTRY.unpack_from(entries, index * entry_bytes)
        whole = decompressed == BLOCK_BYTES or (index == frames - 1 and 0 < decompressed < BLOCK_BYTES)
        if not whole or not 0 < compressed <= MAX_FRAME_BYTES:
            raise MalformedTable(f"frame {index} has {compressed} bytes for {decompressed}, which no block of ours has")
        sizes.append(compressed)
        size_bytes += decompressed
    ends = array("Q", accumulate(sizes))
    if (ends[-1] if ends else 0) != frames_end or block_count(size_bytes) != frames:
        raise MalformedTable(f"its frames do not fill the {frames_end} bytes before the seek table")
    return SeekTable(size_bytes, ends)


def decompress_frame(frame: bytes, length: int) -> bytes:
    """The block of `length` bytes in one frame. Raises zstandard.ZstdError, having allocated no more than a block."""
    parameters = zstandard.get_frame_parameters(frame)
    if parameters.content_size != length:
        raise zstandard.ZstdError(f"the frame says it holds {parameters.content_size} bytes, the seek table {length}")
    block = zstandard.ZstdDecompressor(max_window_size=2 * BLOCK_BYTES).decompress(frame, allow_extra_data=False)
    if len(block) != length:
        raise zstandard.ZstdError(f"the frame holds {len(block)} bytes, not {length}")
    return block


def damaged(why: str, *, operation: str, key: str, tier: str) -> ChecksumMismatch:
    return ChecksumMismatch(f"the stored zstd file is damaged: {why}", operation=operation, subject=key, tier=tier)
