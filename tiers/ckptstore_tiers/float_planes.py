"""How does a block of floating-point numbers become smaller? Split into planes, each of which is compressed or left as it is.

In trained weights the sign and exponent of a number take 8 bits and say 2.7, and its mantissa is noise. Side by side they hide that
from a compressor; apart, the upper bytes compress to their entropy and the lower ones need not be touched. A number of `width` bytes
gives the planes (all lower halves), (the lower halves of the upper halves), …, (all uppermost bytes): of 4 bytes 2 + 1 + 1. A plane is
a zstd frame if that saves 1/50 of it, as a sample tells beforehand; else its bytes. Other bytes (headers, integers) are one plane.

A frame, little endian; every length is checked against the block's before anything is done with it:

    u8                  number of segments
    per segment         u8 bytes of a number (1, 2, 4, 8), u32 bytes of the segment; they fill the block
    per plane           u32 stored bytes; the uppermost bit tells that they are a zstd frame
    zeros               so that what follows begins at a multiple of 8: then the processor reads whole numbers fast
    the planes          in that order, each followed by zeros up to a multiple of 8

Bytes behind the last whole number of a segment become a segment of their own, of width 1.

Measured as in `zstd_seekable`, one core of a machine that others used too:

    | the uppermost byte of bf16 by      | size of the plane | in, out GB/s of the plane |
    |------------------------------------|-------------------|---------------------------|
    | entropy of its bytes               | 0.342             |                           |
    | fast, matches of 7, 64 hash slots  | 0.342             | 1.04  2.69                | <- this one: nearly nothing but Huffman
    | the same, 1,024 or 4,096 slots     | 0.347, 0.355      | 0.51  1.79, 0.46  1.45    |
    | level 1                            | 0.368             | 0.36  1.40                |
    | level 3                            | 0.417             | 0.18  1.09                |
    | level -1                           | 0.643             | 0.35  1.78                |
    | this one, after xor with the last  | 0.400             |                           |
    | this one, after the difference     | 0.419             |                           |

    | whole blocks of | size  | in, out GB/s: one block again and again | a file, by `bench codecs` |
    |-----------------|-------|-----------------------------------------|---------------------------|
    | bf16            | 0.671 | 0.99  3.17                              | 1.11  2.01                |
    | fp32            | 0.824 | 2.63  3.65                              | 1.54  2.29                |
    | fp16            | 0.848 | 2.06  3.12                              | 1.16  1.87                |

Matches that such data has are by chance, and cost more than they save. With the sign rotated to the other end of the number, so that the
exponent has a plane of its own, 0.665 of bf16 would be left instead of 0.671, at two more passes: left out. Strided copies
(`plane[:] = block[i::width]`) split and join at 3.3 GB/s where casts and shifts of whole numbers do 8 to 15; planes in fresh memory instead
of scratch cost three times the split in page faults. Nothing here holds the interpreter's lock for long.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.codecs_format import MalformedFile
from ckptstore_tiers.float_regions import MAX_SEGMENTS, PLAIN, Segment
from ckptstore_tiers.zstd_seekable import LEVEL, decompress

_COUNT = struct.Struct("<B")
_SEGMENT = struct.Struct("<BI")
_PLANE = struct.Struct("<I")
_COMPRESSED = 1 << 31
_ALIGNMENT_BYTES = 8
#: width → bytes that one number has in each plane, lowest first
_PLANES = {1: (1,), 2: (1, 1), 4: (2, 1, 1), 8: (4, 2, 1, 1)}
#: Frames may split a segment's tail off, so there are at most twice as many as regions.
_MAX_STORED_SEGMENTS = 2 * MAX_SEGMENTS
#: Stored as they are, with every header and padding that there can be.
MAX_FRAME_BYTES = BLOCK_BYTES + _COUNT.size + _MAX_STORED_SEGMENTS * (_SEGMENT.size + 4 * (_PLANE.size + _ALIGNMENT_BYTES)) + 8
#: A plane that keeps more than this fraction is stored as it is: reading it then costs nothing.
_WORTH_IT = 0.98
_SAMPLES, _SAMPLE_BYTES = 4, 4096
#: Numbers at a time: what lies between two steps stays in the processor's cache, and in memory that was touched before.
_CHUNK = 1 << 16

_Array = npt.NDArray[np.unsignedinteger[Any]]
_UNSIGNED: dict[int, np.dtype[np.unsignedinteger[Any]]] = {size: np.dtype(f"<u{size}") for size in _PLANES}


def _number_compressor() -> zstandard.ZstdCompressor:
    """Next to nothing but Huffman coding: a hash table of 64 slots finds only what repeats at once, such as zeros."""
    parameters = zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_FAST,
        window_log=21,
        hash_log=6,
        chain_log=6,
        search_log=1,
        min_match=7,
        target_length=0,
        write_content_size=True,
        write_checksum=False,
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


# --- encoding ------------------------------------------------------------------------------------------------------------------


def encode_block(block: memoryview, segments: Sequence[Segment], scratch: memoryview) -> bytes:
    """The frame of a block that is made of these segments. `scratch` is as long as the block at least; what is in it is lost."""
    numbers, others = _number_compressor(), zstandard.ZstdCompressor(level=LEVEL)
    heads: list[bytes] = []
    lengths: list[bytes] = []
    stored: list[bytes | memoryview] = []
    position = 0
    for width, length in _whole_numbers(segments):
        piece, room = block[position : position + length], scratch[position : position + length]
        position += length
        heads.append(_SEGMENT.pack(max(width, 1), length))
        for plane in _split(piece, max(width, 1), room):
            data = _stored_plane(plane, others if width == PLAIN else numbers)
            lengths.append(_PLANE.pack(len(data) | (_COMPRESSED if isinstance(data, bytes) else 0)))
            stored += [data, bytes(-len(data) % _ALIGNMENT_BYTES)]
    head = b"".join([_COUNT.pack(len(heads)), *heads, *lengths])
    return b"".join([head, bytes(-len(head) % _ALIGNMENT_BYTES), *stored])


def _whole_numbers(segments: Sequence[Segment]) -> Iterator[Segment]:
    """The segments, with what is left of one behind its last whole number as a segment of its own."""
    for width, length in segments:
        rest = length % max(width, 1)
        if length > rest:
            yield Segment(width, length - rest)
        if rest:
            yield Segment(PLAIN, rest)


def _split(piece: memoryview, width: int, room: memoryview) -> list[memoryview]:
    """The planes of a piece, lowest first, as bytes in `room`."""
    if width == 1:
        return [piece]
    planes, targets, count, position = [], [], len(piece) // width, 0
    for size in _PLANES[width]:
        planes.append(room[position : position + count * size])
        targets.append(np.frombuffer(planes[-1], _UNSIGNED[size]))
        position += count * size
    whole: _Array = np.frombuffer(piece, _UNSIGNED[width])
    for start in range(0, count, _CHUNK):
        numbers = whole[start : start + _CHUNK]
        for target in targets[:-1]:
            np.copyto(target[start : start + _CHUNK], numbers, casting="unsafe")  # keeps the lower half
            numbers = (numbers >> (8 * target.itemsize)).astype(target.dtype)
        np.copyto(targets[-1][start : start + _CHUNK], numbers)
    return planes


def _stored_plane(plane: memoryview, compressor: zstandard.ZstdCompressor) -> bytes | memoryview:
    """The plane as a zstd frame (bytes), or itself (a view) where that would not pay."""
    size = len(plane)
    if size > 2 * _SAMPLES * _SAMPLE_BYTES:
        starts = range(0, size - _SAMPLE_BYTES + 1, (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
        sample = b"".join(plane[start : start + _SAMPLE_BYTES] for start in starts)
        if len(compressor.compress(sample)) > _WORTH_IT * len(sample):
            return plane
    frame = compressor.compress(plane)
    return frame if len(frame) <= _WORTH_IT * size else plane


# --- decoding ------------------------------------------------------------------------------------------------------------------


def decode_block(frame: memoryview, block: memoryview, scratch: memoryview) -> None:
    """Fill `block` from its frame. Raises MalformedFile; the block then holds anything. `scratch` as for `encode_block`."""
    segments, lengths, position = _read_head(frame, len(block))
    start = 0
    for width, length in segments:
        planes, room = [], start
        for size in _PLANES[width]:
            stored, plane_bytes = lengths.pop(0), length // width * size
            count = stored & ~_COMPRESSED
            data = frame[position : position + count]
            if len(data) != count:
                raise MalformedFile("a plane ends behind the frame")
            if stored >= _COMPRESSED:
                decompress(data, scratch[room : room + plane_bytes])
                data = scratch[room : room + plane_bytes]
            elif count != plane_bytes:
                raise MalformedFile(f"a plane of {plane_bytes} bytes is stored as {count}")
            planes.append(np.frombuffer(data, _UNSIGNED[size]))
            position += count + -count % _ALIGNMENT_BYTES
            room += plane_bytes
        _join(planes, block[start : start + length])
        start += length
    if position != len(frame):
        raise MalformedFile(f"the frame's planes take {position} of its {len(frame)} bytes")


def _read_head(frame: memoryview, block_bytes: int) -> tuple[list[Segment], list[int], int]:
    """The segments, which fill the block, the stored length of each plane, and where the first one begins."""
    try:
        (count,) = _COUNT.unpack_from(frame)
        segments = [Segment(*_SEGMENT.unpack_from(frame, _COUNT.size + index * _SEGMENT.size)) for index in range(count)]
        position = _COUNT.size + count * _SEGMENT.size
        if any(width not in _PLANES or length == 0 or length % width for width, length in segments):
            raise MalformedFile("a segment has a width that there is none of, or not whole numbers")
        planes = sum(len(_PLANES[width]) for width, _ in segments)
        lengths = list(struct.unpack_from(f"<{planes}I", frame, position))
    except struct.error as error:
        raise MalformedFile(f"the frame ends in its own head: {error}") from error
    if sum(length for _, length in segments) != block_bytes:
        raise MalformedFile(f"the frame's segments do not make a block of {block_bytes} bytes")
    position += planes * _PLANE.size
    return segments, lengths, position + -position % _ALIGNMENT_BYTES


def _join(planes: list[_Array], piece: memoryview) -> None:
    """Write the numbers that the planes are of."""
    if len(planes) == 1:
        np.copyto(np.frombuffer(piece, np.uint8), planes[0])
        return
    target: _Array = np.frombuffer(piece, _UNSIGNED[2 * planes[0].itemsize])
    for start in range(0, len(target), _CHUNK):
        upper, *lower = (plane[start : start + _CHUNK] for plane in reversed(planes))
        for half in lower:
            bits = 8 * upper.itemsize
            whole = upper.astype(_UNSIGNED[2 * upper.itemsize])
            np.left_shift(whole, bits, out=whole)
            out = target[start : start + _CHUNK] if whole.dtype == target.dtype else whole
            upper = np.bitwise_or(whole, half, out=out)
