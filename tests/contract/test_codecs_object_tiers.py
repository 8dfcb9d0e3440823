"""Compressed objects in object stores: a real S3 server, and an fsspec URL. What is read of them is what the blocks asked for need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.config import TierSettings
from ckptstore.paths import new_id
from ckptstore_bench.services.seaweedfs import SeaweedS3
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests
from ckptstore_tiers.codecs import CodecTier, Compression
from ckptstore_tiers.codecs_reader import DecodingReader
from ckptstore_tiers.open_tiers import open_tier
from ckptstore_tiers.posix import PosixTier
from ckptstore_tiers.sources import MemorySource, ReaderSource
from tests.contract.float_files import mixed_file
from tests.contract.tier_contract import new_key, stored

SECRET = "testtesttest"
MIXED = mixed_file()


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedS3]:
    with SeaweedS3(tmp_path_factory.mktemp("seaweed"), secret_key=SECRET) as server:
        server.create_bucket("codecs")
        yield server


@pytest.fixture(params=["s3", "file"])
def far(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TierSettings:
    if request.param == "file":
        return TierSettings(name="far", kind="object", url=f"file://{tmp_path}/far")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    options = {"endpoint_url": request.getfixturevalue("seaweed").endpoint_url, "part_size": "8MiB"}
    return TierSettings(name="far", kind="object", url=f"s3://codecs/{new_id()}", options=options)


def opened(far: TierSettings, compression: Compression, tmp_path: Path) -> CodecTier:
    return open_tier(far.model_copy(update={"compression": compression}), tmp_path / "home")


@pytest.mark.parametrize("compression", ["zstd", "float"])
def test_an_object_goes_down_compressed_and_comes_up_as_it_was(
    far: TierSettings, tmp_path: Path, compression: Compression
) -> None:
    near, deep, key = PosixTier("nvme", tmp_path / "nvme"), opened(far, compression, tmp_path), new_key()
    expected = near.put(key, MemorySource(MIXED))
    reader = near.open(key)
    assert deep.put(key, ReaderSource(reader), expected=expected) == expected
    reader.close()
    found = deep.stat(key, size_bytes=len(MIXED))
    assert found.size_bytes == len(MIXED)
    assert found.stored_bytes is not None
    assert found.stored_bytes < 0.95 * len(MIXED)
    near.delete(key)
    reader = deep.open(key, size_bytes=len(MIXED))
    assert near.put(key, ReaderSource(reader), expected=expected) == expected
    reader.close()
    assert stored(near, key) == MIXED
    near.close()
    deep.close()


def test_a_block_costs_one_ranged_read_of_its_frame(far: TierSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep, key = opened(far, "float", tmp_path), new_key()
    deep.put(key, MemorySource(MIXED))
    reader = deep.open(key, size_bytes=len(MIXED))
    assert isinstance(reader, DecodingReader)
    read: list[tuple[int, int]] = []
    read_into = reader._reader.read_into
    monkeypatch.setattr(
        reader._reader, "read_into", lambda offset, buffer: (read.append((offset, len(buffer))), read_into(offset, buffer))
    )
    block = bytearray(BLOCK_BYTES)
    reader.read_into(BLOCK_BYTES, memoryview(block))
    assert block == MIXED[BLOCK_BYTES : 2 * BLOCK_BYTES]
    assert read == [reader._table.frame(1)]
    deep.close()


def test_settings_change_back_and_forth(far: TierSettings, tmp_path: Path) -> None:
    settings: list[Compression] = ["none", "float", "zstd"]
    keys = {compression: new_key(f"/{compression}") for compression in settings}
    for compression, key in keys.items():
        tier = opened(far, compression, tmp_path)
        tier.put(key, MemorySource(MIXED))
        tier.close()
    for compression in settings:
        tier = opened(far, compression, tmp_path)
        assert [BlockDigests.of(stored(tier, key)) for key in keys.values()] == [BlockDigests.of(MIXED)] * 3
        for key in keys.values():
            tier.put(key, MemorySource(MIXED), expected=BlockDigests.of(MIXED))
        tier.close()
