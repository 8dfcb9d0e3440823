"""What does a file look like whose floating-point numbers were split into planes? Frames of one block each, then a table.

    8 bytes             "CKPTFLT" and the version, 1
    frames              one for each 4 MiB of the content, see `float_planes`
    0 or 1 zero byte    1 where the file would otherwise be as long as its content: length alone tells them apart
    per frame           u32 bytes of it
    footer, 32 bytes    u64 bytes of the content, u32 frames, u32 padding (0 or 1), u64 XXH3-64 of the table and the three numbers before,
                        "CKPTFLT" and the version

All numbers are little endian. A file of another version is not damaged, and is refused by name.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import xxhash

from ckptstore_tiers.codecs_format import FrameTable, MalformedFile, NewerFormat, ReadBytes, frame_table
from ckptstore_tiers.float_planes import MAX_FRAME_BYTES, decode_block, encode_block
from ckptstore_tiers.float_regions import Regions
from ckptstore_tiers.scratch import ScratchPool

VERSION = 1
NAME = b"CKPTFLT"
MAGIC = NAME + bytes([VERSION])
_NUMBERS = struct.Struct("<QII")
_CHECK = struct.Struct("<Q")
FOOTER_BYTES = _NUMBERS.size + _CHECK.size + len(MAGIC)


class FloatEncoder:
    """Implements `FrameEncoder` for an object with these regions; `scratch` gives it buffers of a block."""

    head = MAGIC

    def __init__(self, regions: Regions, scratch: ScratchPool) -> None:
        self._regions = regions
        self._scratch = scratch

    def frame(self, index: int, block: memoryview) -> bytes:
        with self._scratch.borrow() as room:
            return encode_block(block, self._regions.segments(index), room)

    def table(self, frame_sizes: Sequence[int], size_bytes: int) -> bytes:
        table = struct.pack(f"<{len(frame_sizes)}I", *frame_sizes)
        whole = len(MAGIC) + sum(frame_sizes) + len(table) + FOOTER_BYTES
        numbers = _NUMBERS.pack(size_bytes, len(frame_sizes), int(whole == size_bytes))
        return bytes(whole == size_bytes) + table + numbers + _check(table + numbers) + MAGIC


class FloatFormat:
    """Implements `FileFormat`."""

    name = "float"
    largest_frame_bytes = MAX_FRAME_BYTES

    def __init__(self) -> None:
        self._scratch = ScratchPool(keep=4)

    def recognises(self, tail: bytes) -> bool:
        return tail[-len(MAGIC) : -1] == NAME

    def read_table(self, file_bytes: int, read: ReadBytes) -> FrameTable:
        if file_bytes < len(MAGIC) + FOOTER_BYTES:
            raise MalformedFile(f"{file_bytes} bytes are too few for a float file")
        footer = read(file_bytes - FOOTER_BYTES, FOOTER_BYTES)
        if footer[-len(MAGIC) :] != MAGIC:
            version = footer[-1]
            if footer[-len(MAGIC) :] == read(0, len(MAGIC)):
                raise NewerFormat(f"it is of version {version} of the float format; this release knows version {VERSION}")
            raise MalformedFile("it begins and ends as files of different formats")
        size_bytes, frames, padding = _NUMBERS.unpack_from(footer)
        start = file_bytes - FOOTER_BYTES - 4 * frames
        if start < len(MAGIC) or padding > 1:
            raise MalformedFile(f"its table speaks of {frames} frames, more than fit into {file_bytes} bytes")
        table = read(start, 4 * frames)
        if _check(table + footer[: _NUMBERS.size]) != footer[_NUMBERS.size : -len(MAGIC)]:
            raise MalformedFile("its table differs from the one that was written")
        sizes = struct.unpack(f"<{frames}I", table)
        return frame_table(size_bytes, sizes, first=len(MAGIC), end=start - padding, largest=MAX_FRAME_BYTES)

    def decode(self, frame: memoryview, block: memoryview) -> None:
        with self._scratch.borrow() as scratch:
            decode_block(frame, block, scratch)


def _check(data: bytes) -> bytes:
    return _CHECK.pack(xxhash.xxh3_64_intdigest(data))
