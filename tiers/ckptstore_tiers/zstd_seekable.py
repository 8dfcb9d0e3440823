"""What does a zstd file look like that can be read from the middle? Frames of one block each, then a table of their sizes.

The format is Zstandard's own "seekable format", version 0.1.0
(https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md): ordinary frames, and
at the end a skippable frame that holds the table. `zstd -d` ignores the table and restores the file.

A file that would come out as long as its content gets one more entry, an empty skippable frame: length alone tells them apart.

Measured on one core, 4 MiB blocks (python-zstandard 0.25, libzstd 1.5.7, all-MiniLM-L6-v2; the text is its tokenizer.json):

    | parameters                        | bf16: size, in, out GB/s | fp32              | text              |
    |-----------------------------------|--------------------------|-------------------|-------------------|
    | level 1 (this one)                | 0.777  1.09  1.41        | 0.925  1.07  1.33 | 0.506  0.37  1.25 |
    | level 3                           | 0.777  0.84  1.50        | 0.926  0.56  1.11 | 0.440  0.18  1.12 |
    | level -1 (leaves literals alone)  | 1.000  9.7   38          | 1.000  8.9   40   | 0.634  0.40  1.88 |
    | level -5                          | 1.000  11.6  47          | 1.000  10.3  41   | 0.801  0.65  2.29 |
    | fast, matches of 7, 64 hash slots | 0.777  1.15  1.39        | 0.925  1.11  1.33 | 0.548  0.47  1.26 |
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import zstandard

from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.codecs_format import FrameTable, MalformedFile, ReadBytes, frame_table

#: Higher levels take longer and gain nothing on weights.
LEVEL = 1
SKIPPABLE_MAGIC = 0x184D2A5E
SEEKABLE_MAGIC = 0x8F92EAB1
#: What zstd may need for a block that does not compress: ZSTD_COMPRESSBOUND, and the frame's header and checksum.
MAX_FRAME_BYTES = BLOCK_BYTES + (BLOCK_BYTES >> 8) + 64

_HEADER = struct.Struct("<II")  # skippable magic, bytes that follow
_ENTRY = struct.Struct("<II")  # compressed size, decompressed size
_FOOTER = struct.Struct("<IBI")  # number of frames, descriptor, seekable magic
_HAS_CHECKSUMS, _RESERVED_BITS = 0x80, 0x7C
_PADDING = _HEADER.pack(SKIPPABLE_MAGIC, 0)
_PADDING_ENTRY = (len(_PADDING), 0)


class ZstdEncoder:
    """Implements `FrameEncoder`."""

    head = b""

    def frame(self, index: int, block: memoryview) -> bytes:
        return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True).compress(block)

    def table(self, frame_sizes: Sequence[int], size_bytes: int) -> bytes:
        table = table_bytes(frame_sizes, size_bytes)
        if sum(frame_sizes) + len(table) == size_bytes:
            return _PADDING + table_bytes(frame_sizes, size_bytes, padded=True)
        return table


class ZstdFormat:
    """Implements `FileFormat`."""

    name = "zstd"
    largest_frame_bytes = MAX_FRAME_BYTES

    def recognises(self, tail: bytes) -> bool:
        return tail.endswith(SEEKABLE_MAGIC.to_bytes(4, "little"))

    def read_table(self, file_bytes: int, read: ReadBytes) -> FrameTable:
        return read_table(file_bytes, read)

    def decode(self, frame: memoryview, block: memoryview) -> None:
        decompress(frame, block)


def table_bytes(frame_sizes: Sequence[int], size_bytes: int, *, padded: bool = False) -> bytes:
    """The skippable frame for an object of `size_bytes`, whose blocks were compressed to `frame_sizes`."""
    lengths = [BLOCK_BYTES] * len(frame_sizes)
    if lengths:
        lengths[-1] = size_bytes - BLOCK_BYTES * (len(lengths) - 1)
    entries = [*zip(frame_sizes, lengths, strict=True), *([_PADDING_ENTRY] if padded else [])]
    body = b"".join(_ENTRY.pack(*sizes) for sizes in entries) + _FOOTER.pack(len(entries), 0, SEEKABLE_MAGIC)
    return _HEADER.pack(SKIPPABLE_MAGIC, len(body)) + body


def read_table(file_bytes: int, read: ReadBytes) -> FrameTable:
    """The table at the end of a file of `file_bytes`. Raises MalformedFile."""
    if file_bytes < _HEADER.size + _FOOTER.size:
        raise MalformedFile(f"{file_bytes} bytes are too few for a seek table")
    frames, descriptor, magic = _FOOTER.unpack(read(file_bytes - _FOOTER.size, _FOOTER.size))
    if magic != SEEKABLE_MAGIC or descriptor & _RESERVED_BITS:
        raise MalformedFile("it does not end in a seek table that this version knows")
    entry_bytes = _ENTRY.size + (4 if descriptor & _HAS_CHECKSUMS else 0)
    body_bytes = frames * entry_bytes + _FOOTER.size
    start = file_bytes - body_bytes - _HEADER.size
    if start < 0:
        raise MalformedFile(f"its seek table speaks of {frames} frames, more than fit into {file_bytes} bytes")
    data = read(start, _HEADER.size + body_bytes)
    if _HEADER.unpack_from(data) != (SKIPPABLE_MAGIC, body_bytes):
        raise MalformedFile("its seek table has no valid header")
    entries = [_ENTRY.unpack_from(data, _HEADER.size + index * entry_bytes) for index in range(frames)]
    if entries and entries[-1] == _PADDING_ENTRY:
        entries.pop()
        start -= len(_PADDING)
    for index, (compressed, decompressed) in enumerate(entries):
        if decompressed != BLOCK_BYTES and not (index == len(entries) - 1 and 0 < decompressed < BLOCK_BYTES):
            raise MalformedFile(f"frame {index} has {compressed} bytes for {decompressed}, which no block of ours has")
    sizes = [compressed for compressed, _ in entries]
    return frame_table(sum(length for _, length in entries), sizes, first=0, end=start, largest=MAX_FRAME_BYTES)


def decompress(frame: memoryview, block: memoryview) -> None:
    """Fill `block` with what a zstd frame holds. MalformedFile if that is not as long; a window of two blocks is the most it allocates.

    Straight into its place: a result of its own for each block costs the page faults of fresh memory, and as much time as decoding.
    """
    try:
        claimed = zstandard.get_frame_parameters(frame).content_size
        if claimed != len(block):
            raise MalformedFile(f"the frame says it holds {claimed} bytes, not {len(block)}")
        with zstandard.ZstdDecompressor(max_window_size=2 * BLOCK_BYTES).stream_reader(frame) as reader:
            filled = 0
            while filled < len(block) and (count := reader.readinto(block[filled:])):
                filled += count
            more = reader.read(1)
    except zstandard.ZstdError as error:
        raise MalformedFile(str(error)) from error
    if filled != len(block) or more:
        raise MalformedFile(f"the frame does not hold the {len(block)} bytes that it says")
