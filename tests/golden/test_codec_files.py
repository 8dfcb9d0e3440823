"""Compressed files do not drift: what this version stored once is read by every later one, and a version from the future is refused.

A new format version gets files of its own; the old ones stay, and stay readable. `python -m tests.golden.test_codec_files` writes files
that are missing, and never touches one that is there. They are not compared with what is written today: another release of zstd may
compress better.
"""

from __future__ import annotations

import random
import struct
from contextlib import closing
from pathlib import Path

import pytest

from ckptstore.errors import ChecksumMismatch, TierUnavailable
from ckptstore.safetensors_format import TensorEntry, build_header
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests
from ckptstore_tiers.codecs import CodecTier, Compression
from ckptstore_tiers.posix import PosixTier
from ckptstore_tiers.sources import MemorySource
from tests.contract.tier_contract import new_key, read_all, stored

FOLDER = Path(__file__).parent
FILES: dict[str, Compression] = {"object-1.safetensors.zst": "zstd", "object-1.safetensors.ckptflt": "float"}
SIZE_BYTES, ROOT = 8_420_921, "fe5ed18cf17c81103ade3878f98aa882"
VERSION_AT = -1


def content() -> bytes:
    """Three blocks of every width, of which most are zeros, so that the files are small."""
    gauss = random.Random(1)
    weights = struct.pack("<3000f", *(gauss.gauss(0.0, 0.02) for _ in range(3000)))
    tensors = {
        "bf16": ("BF16", b"".join(weights[start + 2 : start + 4] for start in range(0, len(weights), 4))),
        "fp32": ("F32", weights),
        "steps": ("I64", struct.pack("<100q", *range(100))),
        "mask": ("U8", bytes(range(17))),
        "zeros": ("F32", bytes(2 * BLOCK_BYTES)),
        "fp64": ("F64", struct.pack("<300d", *(gauss.gauss(0.0, 1.0) for _ in range(300)))),
        "fp16": ("F16", struct.pack("<3000e", *(gauss.gauss(0.0, 0.02) for _ in range(3000)))),
        "fp8": ("F8_E4M3", bytes(gauss.choices(range(60, 80), k=1000))),
    }
    widths, entries, position = {"BF16": 2, "F32": 4, "I64": 8, "U8": 1, "F64": 8, "F16": 2, "F8_E4M3": 1}, [], 0
    for name, (dtype, data) in tensors.items():
        entries.append(TensorEntry(name, dtype, (len(data) // widths[dtype],), position, position + len(data)))
        position += len(data)
    return build_header(entries, {}) + b"".join(data for _, data in tensors.values())


def laid_out(tmp_path: Path, data: bytes) -> tuple[CodecTier, str]:
    """A tier in which a stored file lies as it did when it was written."""
    inner, key = PosixTier("old", tmp_path / "root"), new_key()
    inner.put(key, MemorySource(data))
    return CodecTier(inner, tmp_path / "spool", "none"), key


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_version_1_is_still_read(tmp_path: Path, name: str) -> None:
    tier, key = laid_out(tmp_path, (FOLDER / name).read_bytes())
    with closing(tier), closing(tier.open(key, size_bytes=SIZE_BYTES)) as reader:
        whole = read_all(reader)
        assert BlockDigests.of(whole).root == ROOT
        tail = bytearray(5000)
        reader.read_into(SIZE_BYTES - 5000, memoryview(tail))
        assert tail == whole[-5000:]


@pytest.mark.parametrize("name", FILES)
def test_todays_file_of_the_same_content_is_no_larger(tmp_path: Path, name: str) -> None:
    tier, key = CodecTier(PosixTier("new", tmp_path / "root"), tmp_path / "spool", FILES[name]), new_key()
    with closing(tier):
        tier.put(key, MemorySource(content()))
        assert BlockDigests.of(stored(tier, key)).root == ROOT
        assert (tmp_path / "root" / key).stat().st_size <= 1.05 * (FOLDER / name).stat().st_size


def test_a_float_file_of_a_later_version_is_refused_by_name_and_not_called_damaged(tmp_path: Path) -> None:
    data = bytearray((FOLDER / "object-1.safetensors.ckptflt").read_bytes())
    data[7] = data[VERSION_AT] = 2
    tier, key = laid_out(tmp_path, bytes(data))
    with closing(tier), pytest.raises(TierUnavailable, match="version 2 of the float format; this release knows version 1") as caught:
        tier.open(key, size_bytes=SIZE_BYTES)
    assert caught.value.subject == key
    assert caught.value.hint


def test_a_float_file_whose_version_byte_was_flipped_is_damaged(tmp_path: Path) -> None:
    for place in (7, VERSION_AT):
        data = bytearray((FOLDER / "object-1.safetensors.ckptflt").read_bytes())
        data[place] ^= 0x40
        tier, key = laid_out(tmp_path / str(place), bytes(data))
        with closing(tier):
            if place == VERSION_AT:
                with pytest.raises(ChecksumMismatch):
                    tier.open(key, size_bytes=SIZE_BYTES)
            else:  # the copy at the front only tells damage from a later version
                assert BlockDigests.of(stored(tier, key)).root == ROOT


if __name__ == "__main__":
    import tempfile

    for file, compression in FILES.items():
        if not (FOLDER / file).exists():
            folder = Path(tempfile.mkdtemp())
            with closing(CodecTier(PosixTier("new", folder), folder / "spool", compression)) as new:
                new.put("objects/golden~1", MemorySource(content()))
            (FOLDER / file).write_bytes((folder / "objects/golden~1").read_bytes())
            print(file, len(content()), BlockDigests.of(content()).root)
