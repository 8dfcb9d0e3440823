"""Which bytes of a file are numbers, and how wide is each? As the header of a safetensors file says.

The answer only steers how a block is compressed: every frame says for itself what was done, so a header that lies, or changes while
it is read, costs space and never a byte. A file that is no safetensors file, or has a header beyond the first block (some 30,000
tensors), has no regions; neither has one without a floating-point tensor.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

from ckptstore.errors import InvalidInput
from ckptstore.safetensors_format import Header, header_size_bytes, parse_header
from ckptstore_tiers.checksums import BLOCK_BYTES, block_length

#: Bytes that are no floating-point numbers.
PLAIN = 0
#: safetensors name → bytes of one number. A complex number is two of them.
FLOAT_BYTES = {
    "F64": 8,
    "C64": 4,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "F8_E5M2FNUZ": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E8M0": 1,
}
#: A block of more segments (thousands of tiny tensors of several types in turn) is treated as what most of it is.
MAX_SEGMENTS = 32


class Segment(NamedTuple):
    """A stretch of a block; `width` is that of its numbers in bytes, or PLAIN."""

    width: int
    length: int


@dataclass(frozen=True)
class Regions:
    """Neighbouring tensors of one width are one region. Offsets in bytes from the start of the file."""

    starts: tuple[int, ...]
    widths: tuple[int, ...]
    size_bytes: int

    def segments(self, index: int) -> list[Segment]:
        """What block `index` is made of, in order."""
        begin = index * BLOCK_BYTES
        end = begin + block_length(index, self.size_bytes)
        found = []
        region = bisect_right(self.starts, begin) - 1
        while begin < end:
            stop = min(end, self.starts[region + 1] if region + 1 < len(self.starts) else self.size_bytes)
            found.append(Segment(self.widths[region], stop - begin))
            begin, region = stop, region + 1
        return found if len(found) <= MAX_SEGMENTS else [_prevailing(found)]


def _prevailing(segments: list[Segment]) -> Segment:
    covered: dict[int, int] = {}
    for width, length in segments:
        covered[width] = covered.get(width, 0) + length
    return Segment(max(covered, key=covered.__getitem__), sum(covered.values()))


def read_regions(first_block: memoryview, size_bytes: int) -> Regions | None:
    """The regions of a file that begins with `first_block`, or None if it is not one to split."""
    try:
        data_start = header_size_bytes(first_block[:8], size_bytes)
        if data_start > len(first_block):
            return None
        header = parse_header(first_block[:data_start], size_bytes)
    except InvalidInput:
        return None
    return _regions(header, size_bytes)


def _regions(header: Header, size_bytes: int) -> Regions | None:
    starts, widths = [0], [PLAIN]
    for entry in sorted(header.tensors.values(), key=lambda entry: (entry.start, entry.end)):
        width = FLOAT_BYTES.get(entry.dtype, PLAIN)
        if entry.size_bytes and width != widths[-1]:
            starts.append(header.data_start + entry.start)
            widths.append(width)
    return Regions(tuple(starts), tuple(widths), size_bytes) if len(widths) > 1 else None
