"""A compressing tier keeps the contract, its files are plain zstd files, and damaged ones are refused without harm."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptstore.errors import ChecksumMismatch
from ckptstore_tiers import codecs
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests
from ckptstore_tiers.codecs import ZstdTier
from ckptstore_tiers.posix import PosixTier
from ckptstore_tiers.sources import MemorySource
from ckptstore_tiers.zstd_seekable import MalformedTable, read_table, table_bytes
from tests.contract.tier_contract import TierContract, content, new_key, stored


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[ZstdTier]:
    tier = ZstdTier(PosixTier("cold", tmp_path / "root"), tmp_path / "spool")
    yield tier
    tier.close()
    assert list((tmp_path / "spool").glob("*")) == []


class TestZstdTier(TierContract):
    lists_content_sizes = False

    @pytest.fixture
    def tier(self, tier: ZstdTier) -> ZstdTier:
        return tier


COMPRESSIBLE = b"weights and biases " * 500_000  # 9.5 MB: two whole blocks and a tail


def test_compressible_content_takes_less_room(tier: ZstdTier, tmp_path: Path) -> None:
    key = new_key()
    tier.put(key, MemorySource(COMPRESSIBLE))
    assert (tmp_path / "root" / key).stat().st_size < len(COMPRESSIBLE) / 100
    assert tier.stat(key).size_bytes == len(COMPRESSIBLE)


@pytest.mark.parametrize("data", [COMPRESSIBLE, content(BLOCK_BYTES + 5), b"x", b""], ids=["text", "noise", "one_byte", "empty"])
def test_any_zstd_program_restores_the_file(tier: ZstdTier, tmp_path: Path, data: bytes) -> None:
    key = new_key()
    tier.put(key, MemorySource(data))
    with (tmp_path / "root" / key).open("rb") as file:
        restored = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    assert restored == data


def test_the_zstd_command_restores_the_file(tier: ZstdTier, tmp_path: Path) -> None:
    assert shutil.which("zstd"), "the zstd program is missing: run `make setup`"
    key = new_key()
    tier.put(key, MemorySource(COMPRESSIBLE))
    with (tmp_path / "root" / key).open("rb") as file:
        assert subprocess.run(["zstd", "-d"], stdin=file, capture_output=True, check=True).stdout == COMPRESSIBLE


def test_a_range_reads_only_the_frames_it_touches(tier: ZstdTier, tmp_path: Path) -> None:
    key = new_key()
    tier.put(key, MemorySource(COMPRESSIBLE))
    path = tmp_path / "root" / key
    whole = bytearray(path.read_bytes())
    whole[100] ^= 0xFF  # the first block's frame
    path.write_bytes(whole)
    reader = tier.open(key)
    buffer = bytearray(1000)
    reader.read_into(BLOCK_BYTES, memoryview(buffer))
    assert buffer == COMPRESSIBLE[BLOCK_BYTES : BLOCK_BYTES + 1000]
    with pytest.raises(ChecksumMismatch, match="block 0"):
        reader.read_into(0, memoryview(buffer))
    reader.close()


def test_content_compressed_by_another_release_is_accepted_again(tier: ZstdTier, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key()
    monkeypatch.setattr(codecs, "LEVEL", 9)
    tier.put(key, MemorySource(COMPRESSIBLE))
    monkeypatch.undo()
    assert tier.put(key, MemorySource(COMPRESSIBLE)) == BlockDigests.of(COMPRESSIBLE)
    assert stored(tier, key) == COMPRESSIBLE


# -- damage --------------------


@pytest.fixture(scope="module")
def seekable_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A stored file of three frames, and its content."""
    folder = tmp_path_factory.mktemp("seekable")
    tier, key = ZstdTier(PosixTier("cold", folder / "root"), folder / "spool"), new_key()
    tier.put(key, MemorySource(COMPRESSIBLE))
    tier.close()
    return (folder / "root" / key).read_bytes(), COMPRESSIBLE


def reads_or_refuses(tmp_path: Path, damaged: bytes, original: bytes) -> None:
    """Put `damaged` in the place of a stored file: reading must give the original bytes or ChecksumMismatch, nothing else."""
    inner = PosixTier("cold", tmp_path / "root")
    tier, key = ZstdTier(inner, tmp_path / "spool"), new_key()
    inner.put(key, MemorySource(damaged))
    try:
        assert stored(tier, key) == original
    except ChecksumMismatch as error:
        assert error.subject == key
    finally:
        tier.close()


@pytest.mark.timeout(120)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**9), flip=st.integers(1, 255), cut=st.sampled_from([0, 1, 9, 17, 40]))
def test_damage_anywhere_is_noticed(
    tmp_path: Path, seekable_file: tuple[bytes, bytes], place: int, flip: int, cut: int
) -> None:
    data, original = bytearray(seekable_file[0]), seekable_file[1]
    data = data[: len(data) - cut]
    data[-1 - place % min(len(data), 60)] ^= flip  # the table and what is right before it
    reads_or_refuses(tmp_path, bytes(data), original)


@pytest.mark.parametrize(
    "crafted",
    [
        b"",
        b"x" * 17,
        struct.pack("<IBI", 0xFFFFFFFF, 0, 0x8F92EAB1).rjust(40, b"\0"),
        struct.pack("<IBI", 5, 0x7C, 0x8F92EAB1).rjust(80, b"\0"),
        struct.pack("<II", 0x184D2A5E, 17) + struct.pack("<II", 10, 0xFFFFFFFF) + struct.pack("<IBI", 1, 0, 0x8F92EAB1),
        table_bytes([0xFFFFFFFF], 10),
        table_bytes([3, 3], BLOCK_BYTES + 1),
        b"abc" + table_bytes([3], 0),
    ],
    ids=["empty", "no_table", "four_billion_frames", "reserved_bits", "huge_block", "huge_frame", "no_frames", "empty_block"],
)
def test_a_crafted_table_is_refused(crafted: bytes) -> None:
    with pytest.raises(MalformedTable):
        read_table(len(crafted), lambda offset, length: crafted[offset : offset + length])


def test_a_frame_that_claims_a_terabyte_is_refused(tier: ZstdTier, tmp_path: Path) -> None:
    """A 20-byte frame whose header says that it holds 1 TiB must not make the reader allocate that."""
    header = struct.pack("<IBBQ", 0xFD2FB528, 0xC0, 0x58, 1 << 40) + b"\x01\x00\x00"
    crafted = header + table_bytes([len(header)], 1000)
    key = new_key()
    path = tmp_path / "root" / key
    path.parent.mkdir(parents=True)
    path.write_bytes(crafted)
    reader = tier.open(key)
    with pytest.raises(ChecksumMismatch, match="1099511627776"):
        reader.read_into(0, memoryview(bytearray(1000)))
    reader.close()
