"""Damaged and crafted compressed files: an error that names the object, or the bytes that were saved. Never others, no crash, no memory.

A bit of a plane that is stored as it is changes the block and nothing else: that is for the block's checksum to notice, as every reader
asks it to. So what counts here as read is what passes that.
"""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptstore.errors import ChecksumMismatch, TierUnavailable
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests, block_length
from ckptstore_tiers.codecs import CodecTier, Compression
from ckptstore_tiers.codecs_format import FileFormat, MalformedFile
from ckptstore_tiers.float_file import MAGIC, FloatEncoder, FloatFormat
from ckptstore_tiers.float_planes import decode_block, encode_block
from ckptstore_tiers.float_regions import PLAIN, Regions, Segment, read_regions
from ckptstore_tiers.posix import PosixTier
from ckptstore_tiers.scratch import ScratchPool
from ckptstore_tiers.sources import MemorySource
from ckptstore_tiers.zstd_seekable import ZstdEncoder, ZstdFormat, table_bytes
from tests.contract.float_files import numbers, safetensors_file
from tests.contract.tier_contract import new_key

#: Two blocks and a bit, of which most repeats: thousands of mutations must be read in seconds.
CONTENT = safetensors_file(
    {
        "w": ("BF16", numbers("BF16", 20_001)),
        "m": ("F32", numbers("F32", 10_000)),
        "z": ("F32", bytes(2 * BLOCK_BYTES)),
        "i": ("I64", numbers("I64", 1000)),
    }
)
DIGESTS = BlockDigests.of(CONTENT)
FORMATS: dict[Compression, FileFormat] = {"zstd": ZstdFormat(), "float": FloatFormat()}
#: What a reader may take beside the file itself: a few blocks.
MOST_BYTES = 6 * BLOCK_BYTES


@pytest.fixture(scope="module")
def good_files(tmp_path_factory: pytest.TempPathFactory) -> dict[Compression, bytes]:
    folder, found = tmp_path_factory.mktemp("good"), {}
    for compression in FORMATS:
        with closing(CodecTier(PosixTier("cold", folder), folder / "spool", compression)) as tier:
            key = new_key()
            tier.put(key, MemorySource(CONTENT))
            found[compression] = (folder / key).read_bytes()
    return found


@pytest.fixture(scope="module")
def tier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CodecTier]:
    folder = tmp_path_factory.mktemp("damaged")
    with closing(CodecTier(PosixTier("cold", folder), folder / "spool", "none")) as tier:
        yield tier


def read_or_refuse(tier: CodecTier, data: bytes) -> int:
    """Read every block of a stored file; how many were as saved. Others must be refused, in a way that a reader of the store heeds."""
    key, good = new_key(), 0
    tier.put(key, MemorySource(data))
    try:
        with closing(tier.open(key, size_bytes=len(CONTENT))) as reader:
            for index in range(DIGESTS.count):
                block = memoryview(bytearray(block_length(index, len(CONTENT))))
                try:
                    reader.read_into(index * BLOCK_BYTES, block)
                    DIGESTS.check(index, block, operation="read", subject=key)
                    good += 1
                except ChecksumMismatch as error:
                    assert error.subject == key
    except (ChecksumMismatch, TierUnavailable) as error:
        assert error.subject == key
    tier.delete(key)
    return good


@pytest.mark.parametrize("compression", FORMATS)
def test_the_good_file_is_read(tier: CodecTier, good_files: dict[Compression, bytes], compression: Compression) -> None:
    assert read_or_refuse(tier, good_files[compression]) == DIGESTS.count


def places(size: int) -> st.SearchStrategy[int]:
    """Anywhere, but mostly where the structure is: at the ends."""
    return st.one_of(st.integers(0, min(size, 100) - 1), st.integers(max(0, size - 100), size - 1), st.integers(0, size - 1))


@st.composite
def mutations(draw: st.DrawFn, size: int) -> list[tuple[str, int, int]]:
    acts = st.sampled_from(["flip", "number", "cut", "drop", "repeat", "zeros"])
    return [(draw(acts), draw(places(size)), draw(st.integers(0, 2**32 - 1))) for _ in range(draw(st.integers(1, 3)))]


def mutated(data: bytes, acts: list[tuple[str, int, int]]) -> bytes:
    changed = bytearray(data)
    for act, place, value in acts:
        place %= max(1, len(changed))
        length = 1 + value % 64
        if act == "flip" and changed:
            changed[place] ^= 1 << value % 8
        elif act == "number":
            changed[place : place + 4] = struct.pack("<I", value)[: max(0, len(changed) - place)]
        elif act == "cut":
            del changed[place:]
        elif act == "drop":
            del changed[place : place + length]
        elif act == "repeat":
            changed[place:place] = changed[place : place + length]
        elif act == "zeros":
            changed[place : place + length] = bytes(len(changed[place : place + length]))
    return bytes(changed)


@pytest.mark.parametrize("compression", FORMATS)
def test_mutated_files_give_the_saved_bytes_or_an_error(
    tier: CodecTier, good_files: dict[Compression, bytes], compression: Compression
) -> None:
    data = good_files[compression]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(acts=mutations(len(data)))
    def check(acts: list[tuple[str, int, int]]) -> None:
        read_or_refuse(tier, mutated(data, acts))

    check()


@pytest.mark.parametrize("compression", FORMATS)
@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 31, 32, 39, 40, 41, -1, -2, -8, -9, -17, -32, -40, -1000])
def test_a_file_that_was_cut_off_is_refused(
    tier: CodecTier, good_files: dict[Compression, bytes], compression: Compression, length: int
) -> None:
    assert read_or_refuse(tier, good_files[compression][:length]) == 0


def test_frames_of_mere_noise_are_refused() -> None:
    """The parser of frames itself, on anything at all: the table's checksum keeps most damage from ever reaching it."""
    block, scratch = memoryview(bytearray(4096)), memoryview(bytearray(4096))

    @settings(max_examples=500, deadline=None)
    @given(head=st.binary(max_size=40), rest=st.binary(max_size=200))
    def check(head: bytes, rest: bytes) -> None:
        try:
            decode_block(memoryview(head + rest), block, scratch)
        except MalformedFile:
            return
        assert head[:1] != b"\x00"  # a frame without segments is no frame of a block

    check()


def test_mutated_frames_fill_the_block_or_are_refused() -> None:
    data = numbers("BF16", 5_000) + b"text " * 400 + numbers("F32", 2_500)
    segments = [Segment(2, 10_000), Segment(PLAIN, 2_000), Segment(4, 10_000)]
    scratch = memoryview(bytearray(len(data)))
    frame = encode_block(memoryview(data), segments, scratch)

    @settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
    @given(acts=mutations(len(frame)))
    def check(acts: list[tuple[str, int, int]]) -> None:
        guarded = bytearray(b"\xaa" * (len(data) + 64))
        with suppress(MalformedFile):
            decode_block(memoryview(mutated(frame, acts)), memoryview(guarded)[: len(data)], scratch)
        assert guarded[len(data) :] == b"\xaa" * 64  # nothing is written behind the block

    check()


# -- crafted --------------------


@contextmanager
def at_most(size_bytes: int) -> Iterator[None]:
    """Python's and numpy's allocations within the block, at their highest. zstd allocates its results through Python."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= size_bytes
    finally:
        tracemalloc.stop()


def float_file(frames: list[bytes], size_bytes: int, lengths: list[int] | None = None) -> bytes:
    """A file whose table is sealed as ours are, whatever it claims."""
    encoder = FloatEncoder(Regions((0,), (2,), size_bytes), ScratchPool())
    return MAGIC + b"".join(frames) + encoder.table(lengths if lengths is not None else [len(frame) for frame in frames], size_bytes)


def zstd_file(frames: list[bytes], size_bytes: int) -> bytes:
    return b"".join(frames) + table_bytes([len(frame) for frame in frames], size_bytes)


def frame_of(segments: list[tuple[int, int]], planes: list[int], payload: bytes = b"") -> bytes:
    head = bytes([len(segments)]) + b"".join(struct.pack("<BI", *one) for one in segments) + struct.pack(f"<{len(planes)}I", *planes)
    return head + bytes(-len(head) % 8) + payload


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


TERABYTE_FRAME = struct.pack("<IBBQ", 0xFD2FB528, 0xC0, 0x58, 1 << 40) + b"\x01\x00\x00"
WIDE_FRAME = struct.pack("<IBB", 0xFD2FB528, 0x00, 0xA8) + b"\x01\x00\x00"
BOMB = zstandard.ZstdCompressor(level=19).compress(bytes(64 << 20))
PACKED = 1 << 31
#: The content of every crafted file, as its catalog knows it.
SAVED_BYTES = 1000

CRAFTED = {
    "hundred_gigabytes": float_file([], 100 << 30),
    "hundred_gigabytes_of_frames": float_file([], 100 << 30, [1] * 25_600),
    "no_frame": float_file([], SAVED_BYTES, []),
    "frames_beyond_the_file": float_file([b"x"], SAVED_BYTES, [1 << 31]),
    "four_billion_frames": MAGIC + struct.pack("<QIIQ", SAVED_BYTES, 0xFFFFFFFF, 0, 0) + MAGIC,
    "padding_without_end": MAGIC + struct.pack("<QIIQ", SAVED_BYTES, 0, 0xFFFFFFFF, 0) + MAGIC,
    "empty_frame": float_file([b""], SAVED_BYTES),
    "no_segments": float_file([frame_of([], [])], SAVED_BYTES),
    "segments_that_are_not_there": float_file([b"\xff"], SAVED_BYTES),
    "too_long_segment": float_file([frame_of([(1, 0xFFFFFFFF)], [0])], SAVED_BYTES),
    "segments_that_wrap_around": float_file([frame_of([(1, 0xFFFFFFFF), (1, SAVED_BYTES + 1)], [0, 0])], SAVED_BYTES),
    "width_of_none": float_file([frame_of([(3, SAVED_BYTES)], [SAVED_BYTES], bytes(SAVED_BYTES))], SAVED_BYTES),
    "half_a_number": float_file([frame_of([(8, 996), (4, 4)], [498, 249, 125, 124, 2, 1, 1], bytes(1008))], SAVED_BYTES),
    "plane_beyond_the_frame": float_file([frame_of([(1, SAVED_BYTES)], [0x7FFFFFFF])], SAVED_BYTES),
    "plane_of_another_length": float_file([frame_of([(1, SAVED_BYTES)], [992], bytes(992))], SAVED_BYTES),
    "bytes_left_over": float_file([frame_of([(1, SAVED_BYTES)], [SAVED_BYTES], bytes(SAVED_BYTES + 8))], SAVED_BYTES),
    "terabyte_in_a_plane": float_file([frame_of([(1, SAVED_BYTES)], [len(TERABYTE_FRAME) | PACKED], padded(TERABYTE_FRAME))], SAVED_BYTES),
    "window_in_a_plane": float_file([frame_of([(1, SAVED_BYTES)], [len(WIDE_FRAME) | PACKED], padded(WIDE_FRAME))], SAVED_BYTES),
    "bomb_in_a_plane": float_file([frame_of([(1, SAVED_BYTES)], [len(BOMB) | PACKED], padded(BOMB))], SAVED_BYTES),
    "noise_in_a_plane": float_file([frame_of([(1, SAVED_BYTES)], [16 | PACKED], b"\xaa" * 16)], SAVED_BYTES),
    "zstd_terabyte": zstd_file([TERABYTE_FRAME], SAVED_BYTES),
    "zstd_window": zstd_file([WIDE_FRAME], SAVED_BYTES),
    "zstd_bomb": zstd_file([BOMB], SAVED_BYTES),
    "zstd_four_billion_frames": struct.pack("<IBI", 0xFFFFFFFF, 0, 0x8F92EAB1).rjust(40, b"\0"),
    "zstd_reserved_bits": struct.pack("<IBI", 5, 0x7C, 0x8F92EAB1).rjust(80, b"\0"),
    "zstd_huge_block": struct.pack("<IIIIIBI", 0x184D2A5E, 17, 10, 0xFFFFFFFF, 1, 0, 0x8F92EAB1),
    "zstd_huge_frame": table_bytes([0xFFFFFFFF], 10),
    "zstd_tiny_blocks": table_bytes([3, 3], BLOCK_BYTES + 1),
    "zstd_empty_block": b"abc" + table_bytes([3], 0),
    "zstd_only_padding": table_bytes([], 0, padded=True),
}  # fmt: skip


@pytest.mark.parametrize("crafted", CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_file_is_refused_at_the_cost_of_its_own_size(tier: CodecTier, crafted: bytes) -> None:
    key, buffer = new_key(), memoryview(bytearray(SAVED_BYTES))
    tier.put(key, MemorySource(crafted))

    def read() -> None:
        with closing(tier.open(key, size_bytes=SAVED_BYTES)) as reader:
            reader.read_into(0, buffer)

    with at_most(2 * len(crafted) + MOST_BYTES), pytest.raises(ChecksumMismatch) as caught:
        read()
    assert caught.value.subject == key


@pytest.mark.parametrize("header", [
    b"",
    b"\xff" * 8,
    struct.pack("<Q", 100 << 30) + b"{}",
    struct.pack("<Q", 8) + b"no json!",
    struct.pack("<Q", 2) + b"{}",
    struct.pack("<Q", 1 << 20) + b"[" * (1 << 20),
    struct.pack("<Q", 62) + b'{"w":{"dtype":"BF16","shape":[1e9],"data_offsets":[0,1000000]}}',
], ids=["empty", "endless", "hundred_gigabytes", "no_json", "no_tensors", "nested", "beyond_the_file"])  # fmt: skip
def test_a_header_that_lies_leaves_the_file_whole(tier: CodecTier, tmp_path: Path, header: bytes) -> None:
    data = header + b"text " * 10_000
    assert read_regions(memoryview(data), len(data)) is None
    with closing(CodecTier(PosixTier("cold", tmp_path), tmp_path / "spool", "float")) as floats:
        key = new_key()
        assert floats.put(key, MemorySource(data)) == BlockDigests.of(data)
        buffer = bytearray(len(data))
        with closing(floats.open(key, size_bytes=len(data))) as reader:
            reader.read_into(0, memoryview(buffer))
        assert buffer == data


# -- lengths --------------------


@pytest.mark.parametrize("compression", FORMATS)
@pytest.mark.parametrize("frames", [1, 3])
def test_no_compressed_file_is_as_long_as_its_content(compression: Compression, frames: int) -> None:
    """Frame lengths for which the whole would be: one of a million, and then a plain file would be taken for it, or it for a plain one."""
    for size_bytes in (frames * BLOCK_BYTES, frames * BLOCK_BYTES - 5):
        encoder = ZstdEncoder() if compression == "zstd" else FloatEncoder(Regions((0,), (2,), size_bytes), ScratchPool())
        sizes = [BLOCK_BYTES - 1000] * frames
        sizes[0] += size_bytes - len(encoder.head) - sum(sizes) - len(encoder.table(sizes, size_bytes))
        assert len(encoder.head) + sum(sizes) + len(table_bytes(sizes, size_bytes)) == size_bytes or compression == "float"
        table = encoder.table(sizes, size_bytes)
        data = encoder.head + bytes(sum(sizes)) + table
        assert len(data) != size_bytes
        found = FORMATS[compression].read_table(len(data), lambda offset, length, data=data: data[offset : offset + length])
        assert found.size_bytes == size_bytes
        assert [found.frame(index)[1] for index in range(frames)] == sizes
        assert found.frame(0)[0] == len(encoder.head)
