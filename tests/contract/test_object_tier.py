"""The object tier keeps the contract over a real S3 server, over one that checks nothing, and over fsspec URLs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer

from ckptstore.config import TierSettings
from ckptstore.paths import new_id
from ckptstore_tiers.interface import Tier
from ckptstore_tiers.object_tier import open_object_tier
from tests.contract.tier_contract import TierContract, keys
from tests.services.seaweedfs import SeaweedS3

BUCKET = "checkpoints"
SECRET = "testtesttest"


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedS3]:
    with SeaweedS3(tmp_path_factory.mktemp("seaweed"), secret_key=SECRET) as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


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
        settings = s3_settings(moto_url)
        make_bucket(moto_url)
        tier = open_object_tier(settings)
        yield tier
        tier.close()

    def test_the_probe_finds_what_this_server_can_do(self, tier: Tier) -> None:
        assert tier.facts.details["checksum"] == "not checked by the server: every put is read back"


def make_bucket(endpoint_url: str) -> None:
    import botocore.session

    client = botocore.session.Session().create_client("s3", region_name="us-east-1", endpoint_url=endpoint_url)
    client.create_bucket(Bucket=BUCKET)


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
