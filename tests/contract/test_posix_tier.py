"""The posix tier keeps the contract on a local disk and on tmpfs, where there is no O_DIRECT on older kernels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore_tiers.posix import PosixTier
from tests.contract.tier_contract import TierContract


class TestPosixTierOnDisk(TierContract):
    @pytest.fixture
    def tier(self, tmp_path: Path) -> Iterator[PosixTier]:
        tier = PosixTier("nvme", tmp_path / "root")
        yield tier
        tier.close()
        assert list((tmp_path / "root/tmp").iterdir()) == []


class TestPosixTierInMemory(TierContract):
    @pytest.fixture
    def tier(self) -> Iterator[PosixTier]:
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="ckptstore-test-") as folder:
            tier = PosixTier("shm", Path(folder) / "root")
            yield tier
            tier.close()


class TestPosixTierBuffered(TierContract):
    @pytest.fixture
    def tier(self, tmp_path: Path) -> Iterator[PosixTier]:
        tier = PosixTier("nvme", tmp_path / "root", direct_io="never")
        yield tier
        tier.close()


class TestSharedPosixTier(TierContract):
    @pytest.fixture
    def tier(self, tmp_path: Path) -> Iterator[PosixTier]:
        tier = PosixTier("pfs", tmp_path / "root", shared=True)
        yield tier
        tier.close()
