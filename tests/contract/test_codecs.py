"""A compressing tier keeps the contract, whatever it stores its objects as, and reads what another setting has stored."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
import zstandard

from ckptstore.errors import AlreadyExists, ChecksumMismatch
from ckptstore_tiers import codecs, zstd_seekable
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests
from ckptstore_tiers.codecs import CodecTier, Compression
from ckptstore_tiers.codecs_reader import DecodingReader
from ckptstore_tiers.float_regions import PLAIN, Regions
from ckptstore_tiers.paced import PacedSource
from ckptstore_tiers.posix import PosixTier
from ckptstore_tiers.sources import MemorySource
from tests.contract.float_files import mixed_file, one_tensor
from tests.contract.tier_contract import TierContract, content, new_key, read_all, stored

COMPRESSIBLE = b"weights and biases " * 500_000  # 9.5 MB: two whole blocks and a tail
MIXED = mixed_file()
OpenTier = Callable[[Compression], CodecTier]


@pytest.fixture
def open_tier(tmp_path: Path) -> Iterator[OpenTier]:
    """Opens the same folder with any setting."""
    opened: list[CodecTier] = []

    def open_with(compression: Compression) -> CodecTier:
        opened.append(CodecTier(PosixTier("cold", tmp_path / "root"), tmp_path / "spool", compression))
        return opened[-1]

    yield open_with
    for tier in opened:
        tier.close()
    assert list((tmp_path / "spool").glob("*")) == []


def in_pieces(first_block: memoryview, size_bytes: int) -> Regions | None:
    """Regions of every width over any content at all."""
    random_places = random.Random(size_bytes)
    starts = sorted({0, *(random_places.randrange(max(1, size_bytes)) for _ in range(40))})
    return Regions(tuple(starts), tuple(random_places.choice([PLAIN, 1, 2, 4, 8]) for _ in starts), size_bytes)


class TestZstdTier(TierContract):
    lists_content_sizes = False

    @pytest.fixture
    def tier(self, open_tier: OpenTier) -> CodecTier:
        return open_tier("zstd")


class TestFloatTier(TierContract):
    """Every object is split, whatever it holds."""

    lists_content_sizes = False

    @pytest.fixture
    def tier(self, open_tier: OpenTier, monkeypatch: pytest.MonkeyPatch) -> CodecTier:
        monkeypatch.setattr(codecs, "read_regions", in_pieces)
        return open_tier("float")


# -- what is stored --------------------


@pytest.mark.parametrize(("compression", "data", "at_most"), [
    ("zstd", COMPRESSIBLE, 0.01),
    ("zstd", one_tensor("BF16", 3 * BLOCK_BYTES), 0.79),
    ("float", one_tensor("BF16", 3 * BLOCK_BYTES), 0.70),
    ("float", one_tensor("F32", 3 * BLOCK_BYTES), 0.84),
    ("float", one_tensor("F16", 3 * BLOCK_BYTES), 0.90),
    ("float", COMPRESSIBLE, 0.01),
], ids=["zstd-text", "zstd-bf16", "bf16", "fp32", "fp16", "float-text"])  # fmt: skip
def test_stored_objects_take_less_room(
    open_tier: OpenTier, tmp_path: Path, compression: Compression, data: bytes, at_most: float
) -> None:
    tier, key = open_tier(compression), new_key()
    assert tier.put(key, MemorySource(data)) == BlockDigests.of(data)
    assert (tmp_path / "root" / key).stat().st_size <= at_most * len(data)
    found = tier.stat(key)
    assert (found.size_bytes, found.stored_bytes) == (len(data), (tmp_path / "root" / key).stat().st_size)
    assert stored(tier, key) == data


def test_every_width_comes_back_also_unaligned(open_tier: OpenTier, tmp_path: Path) -> None:
    tier, key = open_tier("float"), new_key()
    tier.put(key, MemorySource(MIXED))
    assert stored(tier, key) == MIXED
    assert (tmp_path / "root" / key).read_bytes().startswith(b"CKPTFLT\x01")


@pytest.mark.parametrize("data", [COMPRESSIBLE, content(BLOCK_BYTES + 5), b"x", b""], ids=["text", "noise", "one_byte", "empty"])
@pytest.mark.parametrize("compression", ["zstd", "float"])
def test_the_zstd_command_restores_what_is_no_float_file(
    open_tier: OpenTier, tmp_path: Path, compression: Compression, data: bytes
) -> None:
    assert shutil.which("zstd"), "the zstd program is missing: run `make setup`"
    tier, key = open_tier(compression), new_key()
    tier.put(key, MemorySource(data))
    with (tmp_path / "root" / key).open("rb") as file:
        assert subprocess.run(["zstd", "-d"], stdin=file, capture_output=True, check=True).stdout == data
    assert zstandard.ZstdDecompressor().stream_reader((tmp_path / "root" / key).read_bytes(), read_across_frames=True).read() == data


@pytest.mark.parametrize("compression", get_args(Compression))
def test_a_stored_file_is_restored_without_a_store(open_tier: OpenTier, tmp_path: Path, compression: Compression) -> None:
    tier, key = open_tier(compression), new_key()
    tier.put(key, MemorySource(MIXED))
    command = [sys.executable, "-m", "ckptstore_tiers.restore_file", tmp_path / "root" / key, tmp_path / "restored"]
    subprocess.run(command, check=True, timeout=60)
    assert (tmp_path / "restored").read_bytes() == MIXED
    again = subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)
    assert again.returncode != 0
    assert "ckptstore:" in again.stderr
    assert (tmp_path / "restored").read_bytes() == MIXED


# -- ranges --------------------


class CountedReads:
    """A reader that notes what is asked of it."""

    def __init__(self, tier: CodecTier, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ranges: list[tuple[int, int]] = []
        inner_open = tier._inner.open

        def open_counted(key: str) -> object:
            reader = inner_open(key)
            read_into = reader.read_into

            def counted(offset: int, buffer: memoryview) -> None:
                self.ranges.append((offset, len(buffer)))
                read_into(offset, buffer)

            monkeypatch.setattr(reader, "read_into", counted)
            return reader

        monkeypatch.setattr(tier._inner, "open", open_counted)


@pytest.mark.parametrize(("compression", "data"), [("zstd", COMPRESSIBLE), ("float", MIXED)], ids=["zstd", "float"])
def test_a_range_reads_only_the_frames_it_touches(
    open_tier: OpenTier, monkeypatch: pytest.MonkeyPatch, compression: Compression, data: bytes
) -> None:
    tier, key = open_tier(compression), new_key()
    tier.put(key, MemorySource(data))
    counted = CountedReads(tier, monkeypatch)
    reader = tier.open(key)
    assert len(counted.ranges) == 1  # the table
    assert isinstance(reader, DecodingReader)
    frames = [reader._table.frame(index) for index in range(3)]
    for offset, length, touched in [
        (BLOCK_BYTES, 1000, frames[1:2]),
        (BLOCK_BYTES - 1, 2, frames[:2]),
        (17, 2 * BLOCK_BYTES, frames),
        (5, 0, []),
    ]:
        counted.ranges.clear()
        buffer = bytearray(length)
        reader.read_into(offset, memoryview(buffer))
        assert buffer == data[offset : offset + length]
        assert counted.ranges == touched
    reader.close()


def test_the_table_of_a_large_object_is_read_where_it_lies(open_tier: OpenTier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptstore_tiers.codecs_reader.TAIL_BYTES", 20)
    for compression in ("zstd", "float"):
        tier, key = open_tier(compression), new_key()
        tier.put(key, MemorySource(MIXED))
        assert stored(tier, key) == MIXED


# -- settings that change --------------------


@pytest.mark.parametrize("later", get_args(Compression))
@pytest.mark.parametrize("earlier", get_args(Compression))
def test_what_another_setting_stored_is_read_and_put_again(
    open_tier: OpenTier, tmp_path: Path, earlier: Compression, later: Compression
) -> None:
    key, expected = new_key(), BlockDigests.of(MIXED)
    open_tier(earlier).put(key, MemorySource(MIXED))
    before = (tmp_path / "root" / key).read_bytes()
    tier = open_tier(later)
    assert stored(tier, key) == MIXED
    assert tier.stat(key, size_bytes=len(MIXED)).size_bytes == len(MIXED)
    assert tier.put(key, MemorySource(MIXED), expected=expected) == expected
    other = bytearray(MIXED)
    other[-1] ^= 1
    with pytest.raises((AlreadyExists, ChecksumMismatch)):
        tier.put(key, MemorySource(other), expected=BlockDigests.of(other))
    assert (tmp_path / "root" / key).read_bytes() == before


@pytest.mark.parametrize("compression", get_args(Compression))
def test_a_compressed_file_that_was_put_as_it_is_stays_what_it_is(
    open_tier: OpenTier, tmp_path: Path, compression: Compression
) -> None:
    """A user's own seekable zstd file, or a copy of a stored one, in a tier that does not compress; then the setting changes."""
    for format in ("zstd", "float"):
        first, key = new_key(), new_key()
        open_tier(format).put(first, MemorySource(MIXED))
        packed = (tmp_path / "root" / first).read_bytes()
        open_tier("none").put(key, MemorySource(packed))
        tier = open_tier(compression)
        reader = tier.open(key, size_bytes=len(packed))
        assert read_all(reader) == packed
        reader.close()
        assert tier.stat(key, size_bytes=len(packed)).size_bytes == len(packed)


@pytest.mark.parametrize("compression", get_args(Compression))
def test_a_file_of_another_length_than_was_saved_is_damaged(
    open_tier: OpenTier, tmp_path: Path, compression: Compression
) -> None:
    tier, key = open_tier(compression), new_key()
    tier.put(key, MemorySource(MIXED))
    for size_bytes in (len(MIXED) - 1, len(MIXED) + 1, 0):
        with pytest.raises(ChecksumMismatch, match=str(size_bytes)):
            tier.open(key, size_bytes=size_bytes)
    with open(tmp_path / "root" / key, "r+b") as file:
        file.truncate((tmp_path / "root" / key).stat().st_size - 3)
    with pytest.raises(ChecksumMismatch):
        tier.open(key, size_bytes=len(MIXED))


def test_content_compressed_by_another_release_is_accepted_again(open_tier: OpenTier, monkeypatch: pytest.MonkeyPatch) -> None:
    tier, key = open_tier("zstd"), new_key()
    monkeypatch.setattr(zstd_seekable, "LEVEL", 9)
    tier.put(key, MemorySource(COMPRESSIBLE))
    monkeypatch.undo()
    assert tier.put(key, MemorySource(COMPRESSIBLE)) == BlockDigests.of(COMPRESSIBLE)
    assert stored(tier, key) == COMPRESSIBLE


# -- at a pace --------------------


class Noted:
    """A gate that lets everything pass."""

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}

    def _note(self, act: str, size_bytes: int) -> None:
        self.taken[act] = self.taken.get(act, 0) + size_bytes

    def take(self, size_bytes: int) -> None:
        self._note("taken", size_bytes)

    def read(self, size_bytes: int) -> None:
        self._note("read", size_bytes)

    def write(self, size_bytes: int) -> None:
        self._note("written", size_bytes)


@pytest.mark.parametrize("compression", get_args(Compression))
def test_against_a_limit_counts_what_is_written(open_tier: OpenTier, compression: Compression) -> None:
    tier, key, gate = open_tier(compression), new_key(), Noted()
    tier.put(key, PacedSource(MemorySource(MIXED), gate))
    written = tier.stat(key, size_bytes=len(MIXED)).stored_bytes
    if compression == "none":
        assert gate.taken == {"taken": len(MIXED)}
    else:
        assert gate.taken["written"] == written
        assert len(MIXED) <= gate.taken["read"] <= len(MIXED) + BLOCK_BYTES  # the first block also tells which codec
        assert "taken" not in gate.taken


# -- before it counts --------------------


@pytest.mark.parametrize(("compression", "encoder"), [("zstd", "ZstdEncoder"), ("float", "FloatEncoder")])
def test_a_frame_that_does_not_give_the_block_back_is_never_stored(
    open_tier: OpenTier, monkeypatch: pytest.MonkeyPatch, compression: Compression, encoder: str
) -> None:
    """What a faulty processor, or codec, does to one block of several."""
    tier, key, original = open_tier(compression), new_key(), getattr(codecs, encoder).frame

    def faulty(self: object, index: int, block: memoryview) -> bytes:
        wrong = bytearray(block)
        wrong[len(wrong) // 2] ^= index == 1
        return original(self, index, memoryview(wrong))

    monkeypatch.setattr(getattr(codecs, encoder), "frame", faulty)
    with pytest.raises(ChecksumMismatch, match="block 1 does not come back"):
        tier.put(key, MemorySource(MIXED))
    assert list(tier.list("objects/")) == []
