"""The object tier keeps the contract over a real S3 server, over one that checks nothing, and over fsspec URLs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ckptstore.config import TierSettings
from ckptstore.errors import CkptStoreError, ConfigInvalid, InvalidInput, PathConflict, TierFull, TierUnavailable
from ckptstore.paths import new_id
from ckptstore_bench.scratch import remove_objects
from ckptstore_bench.services.seaweedfs import SeaweedS3
from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.fsspec_tier import FsspecTier
from ckptstore_tiers.interface import Tier
from ckptstore_tiers.object_tier import open_object_tier
from ckptstore_tiers.s3_options import read_s3_settings
from ckptstore_tiers.s3_upload import MAX_PARTS, part_bytes
from ckptstore_tiers.sources import MemorySource
from tests.contract.tier_contract import (
    FailingSource,
    TierContract,
    assert_nothing_visible,
    content,
    keys,
    new_key,
    stored,
)
from tests.services.moto_s3 import moto_s3

BUCKET = "checkpoints"
SECRET = "testtesttest"


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedS3]:
    with SeaweedS3(tmp_path_factory.mktemp("seaweed"), secret_key=SECRET) as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    with moto_s3(BUCKET) as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment's credentials, and no files of the person who runs the tests."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def s3_settings(endpoint_url: str, **more: Any) -> TierSettings:
    """Settings of a tier under a prefix of its own, with the smallest parts, so that small objects go in several."""
    options = {"endpoint_url": endpoint_url, "part_size": "8MiB"} | more.pop("options", {})
    return TierSettings(name="object", kind="object", url=f"s3://{BUCKET}/tests/{new_id()}", options=options, **more)


class TestS3TierOverSeaweedFS(TierContract):
    @pytest.fixture
    def tier(self, seaweed: SeaweedS3) -> Iterator[Tier]:
        tier = open_object_tier(s3_settings(seaweed.endpoint_url))
        yield tier
        tier.close()

    def test_the_probe_finds_what_this_server_can_do(self, tier: Tier) -> None:
        details = tier.facts.details
        assert details["checksum"] == "crc32, checked by the server"
        assert details["conditional_put"] == "honoured"
        assert details["conditional_complete"] == "honoured"
        assert keys(tier) == []


class TestS3TierOverMoto(TierContract):
    """moto takes wrong checksums for right, so every put is read back here."""

    @pytest.fixture
    def tier(self, moto_url: str) -> Iterator[Tier]:
        tier = open_object_tier(s3_settings(moto_url))
        yield tier
        tier.close()

    def test_the_probe_finds_what_this_server_can_do(self, tier: Tier) -> None:
        assert tier.facts.details["checksum"] == "not checked by the server: every put is read back"


class TestFsspecTierInMemory(TierContract):
    @pytest.fixture
    def tier(self) -> Iterator[Tier]:
        tier = open_object_tier(TierSettings(name="object", kind="object", url=f"memory://tests/{new_id()}"))
        yield tier
        tier.close()
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]


class TestFsspecTierOnFiles(TierContract):
    @pytest.fixture
    def tier(self, tmp_path: Path) -> Iterator[Tier]:
        tier = open_object_tier(TierSettings(name="object", kind="object", url=f"file://{tmp_path}/root"))
        yield tier
        tier.close()
        left = tmp_path / "root/tmp"
        assert not left.exists() or list(left.iterdir()) == []


class TestFsspecTierOverAnObjectStore(TierContract):
    """s3fs stands for the backends that show an object when its upload is closed (`gs://`, `oss://`, …): no temporary names."""

    @pytest.fixture
    def tier(self, moto_url: str) -> Iterator[Tier]:
        options = {"endpoint_url": moto_url, "key": "test", "secret": SECRET}
        tier = FsspecTier(
            TierSettings(name="object", kind="object", url=f"s3://{BUCKET}/tests/{new_id()}", options=options)
        )
        yield tier
        tier.close()


# -- what is not in the contract --------------------


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint": "http://127.0.0.1:1"},
        {"secret": "hush-hush"},
        {"endpoint_url": "ftp://127.0.0.1"},
        {"endpoint_url": "http://user:hush-hush@127.0.0.1:1"},
        {"part_size": "5MiB"},
        {"part_size": "4MiB"},
        {"parallel": 0},
        {"retry_for_s": -1},
        {"profile": "no-such-profile"},
    ],
    ids=lambda options: "-".join(options),
)
def test_wrong_options_are_refused_by_name_and_not_repeated(options: dict[str, Any]) -> None:
    settings = TierSettings(name="object", kind="object", url="s3://bucket/prefix", options=options)
    with pytest.raises(ConfigInvalid, match=next(iter(options))) as caught:
        open_object_tier(settings)
    assert "hush-hush" not in str(caught.value) + repr(caught.value.__cause__)


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "s3://user:word@bucket", "no-url", "nosuchprotocol://x"])
def test_a_url_that_nobody_understands_is_refused(url: str) -> None:
    with pytest.raises(ConfigInvalid):
        open_object_tier(TierSettings(name="object", kind="object", url=url))


def test_a_prefix_keeps_its_odd_characters() -> None:
    place, _ = read_s3_settings(TierSettings(name="object", kind="object", url="s3://bucket/a b/#1/%41/"))
    assert (place.bucket, place.prefix) == ("bucket", "a b/#1/%41/")


def test_parts_grow_so_that_ten_thousand_hold_the_object() -> None:
    configured = 4 * BLOCK_BYTES
    assert part_bytes(1, configured) == configured
    for size_bytes in (configured * MAX_PARTS, configured * MAX_PARTS + 1, 5 * 10**12):
        part = part_bytes(size_bytes, configured)
        assert part % BLOCK_BYTES == 0
        assert -(-size_bytes // part) <= MAX_PARTS
        assert part == configured or -(-size_bytes // (part - BLOCK_BYTES)) > MAX_PARTS


def test_a_backslash_and_what_stands_for_it_are_kept_apart_and_found_by_prefix(seaweed: SeaweedS3) -> None:
    tier = open_object_tier(s3_settings(seaweed.endpoint_url))
    names = [f"objects/{name}~x" for name in ("a\\b", "a%5Cb", "a%255Cb", "a/b", "a%", "a%25")]
    for name in names:
        tier.put(name, MemorySource(name.encode()))
    assert keys(tier) == sorted(names)
    assert [stored(tier, name) for name in names] == [name.encode() for name in names]
    for prefix in ("objects/a\\", "objects/a%", "objects/a%2", "objects/a%5", "objects/a%25", "objects/a%5C"):
        assert keys(tier, prefix) == sorted(name for name in names if name.startswith(prefix))
    tier.close()


def test_a_long_list_comes_page_by_page(seaweed: SeaweedS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptstore_tiers.s3_tier.LIST_PAGE", 3)
    tier = open_object_tier(s3_settings(seaweed.endpoint_url))
    names = [new_key(f"/many/ä b+{number}") for number in range(10)]
    for name in names:
        tier.put(name, MemorySource(b"x"))
    assert keys(tier) == sorted(names)
    listing = tier.list("")
    first = [next(listing).key for _ in range(3)]
    for name in names:
        tier.delete(name)
    assert list(listing) == []
    assert set(first) < set(names)
    tier.close()


@pytest.mark.parametrize("kind", ["s3", "memory"])
def test_a_configured_capacity_is_kept(seaweed: SeaweedS3, kind: str) -> None:
    s3 = s3_settings(seaweed.endpoint_url, capacity=10_000)
    memory = TierSettings(name="object", kind="object", url=f"memory://tests/{new_id()}", capacity=10_000)
    tier = open_object_tier(s3 if kind == "s3" else memory)
    first, second = new_key(), new_key()
    tier.put(first, MemorySource(content(6_000)))
    assert tier.usage().free_bytes == 4_000
    with pytest.raises(TierFull):
        tier.put(second, MemorySource(content(6_000)))
    assert_nothing_visible(tier, second)
    tier.delete(first)
    tier.put(second, MemorySource(content(6_000)))
    assert tier.usage().used_bytes == 6_000
    tier.close()


def test_an_upload_that_failed_leaves_no_parts_behind(seaweed: SeaweedS3) -> None:
    tier = open_object_tier(s3_settings(seaweed.endpoint_url))
    key, data = new_key(), content(7 * BLOCK_BYTES)
    with pytest.raises(CkptStoreError):
        tier.put(key, FailingSource(data, 5))
    assert seaweed.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []
    assert_nothing_visible(tier, key)
    tier.close()


def test_what_a_bench_left_goes_with_the_uploads_that_never_ended_and_nothing_else(seaweed: SeaweedS3, tmp_path: Path) -> None:
    own, other = s3_settings(seaweed.endpoint_url), s3_settings(seaweed.endpoint_url)
    for settings in (own, other):
        tier = open_object_tier(settings)
        tier.put(new_key(), MemorySource(content(1_000)))
        tier.close()
        prefix = (settings.url or "").removeprefix(f"s3://{BUCKET}/")
        seaweed.client().create_multipart_upload(Bucket=BUCKET, Key=f"{prefix}/objects/half~{new_id()}")
    remove_objects(own, tmp_path)
    left = [upload["Key"] for upload in seaweed.client().list_multipart_uploads(Bucket=BUCKET)["Uploads"]]
    assert len(left) == 1 and f"s3://{BUCKET}/{left[0]}".startswith(other.url or "")
    assert [len(list(open_object_tier(settings).list(""))) for settings in (own, other)] == [0, 1]
    remove_objects(other, tmp_path)
    assert seaweed.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []


def test_a_temporary_file_of_a_crash_is_swept_by_its_id_and_no_other(tmp_path: Path) -> None:
    tier = open_object_tier(TierSettings(name="object", kind="object", url=f"file://{tmp_path}"))
    ours, theirs = new_id(), new_id()
    (tmp_path / "tmp").mkdir()
    for object_id in (ours, theirs):
        (tmp_path / "tmp" / f"0123456789abcdef~{object_id}").write_bytes(b"half")
    assert keys(tier) == []
    assert tier.sweep([ours, new_id()]) == 1
    assert [left.name.rpartition("~")[2] for left in (tmp_path / "tmp").iterdir()] == [theirs]
    assert tier.sweep(None) == 1 and not any((tmp_path / "tmp").iterdir())
    tier.close()


def test_an_exclusive_document_is_refused_where_no_backend_act_is_atomic(tmp_path: Path) -> None:
    tier = open_object_tier(TierSettings(name="object", kind="object", url=f"dir::file://{tmp_path}", options={}))
    with pytest.raises(InvalidInput, match="no atomic creation"):
        tier.put_document("store.json", b"{}", exclusive=True)
    tier.close()


@pytest.mark.parametrize("below", ["", "/below/it"])
def test_a_root_that_is_a_file_is_refused_by_name_when_the_tier_is_opened(tmp_path: Path, below: str) -> None:
    file = tmp_path / "a file"
    file.write_bytes(b"somebody's")
    with pytest.raises(TierUnavailable, match="a file is a file, not a folder") as caught:
        open_object_tier(TierSettings(name="object", kind="object", url=f"file://{file}{below}"))
    assert (caught.value.tier, caught.value.subject) == ("object", f"{file}{below}")
    assert file.read_bytes() == b"somebody's"


def test_a_file_that_took_the_place_of_the_root_later_is_a_conflict_and_not_a_missing_object(tmp_path: Path) -> None:
    tier = open_object_tier(TierSettings(name="object", kind="object", url=f"file://{tmp_path}/root"))
    (tmp_path / "root").write_bytes(b"somebody's")
    for put in (
        lambda: tier.put(new_key(), MemorySource(b"x")),
        lambda: tier.put_document("store.json", b"{}", exclusive=True),
    ):
        with pytest.raises(PathConflict):
            put()
    tier.close()
