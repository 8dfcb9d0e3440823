"""A real SeaweedFS mount is refused by name: what it breaks, no short probe shows reliably."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.errors import ConfigInvalid
from ckptstore_tiers.posix import PosixTier
from ckptstore_tiers.posix_probe import refuse_file_system
from tests.services.seaweed_mount import seaweed_mount


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with seaweed_mount(tmp_path_factory.mktemp("weed")) as mount:
        yield mount


def test_a_seaweedfs_mount_is_refused_by_name_before_anything_is_written(mount: Path) -> None:
    with pytest.raises(ConfigInvalid, match="SeaweedFS mount") as caught:
        PosixTier("pfs", mount / "store", shared=True)
    assert caught.value.subject == str(mount / "store")
    assert "S3 gateway" in (caught.value.hint or "")
    assert not (mount / "store").exists()


def test_its_mount_point_is_refused_through_a_link_too(mount: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(mount)
    with pytest.raises(ConfigInvalid, match="SeaweedFS mount"):
        PosixTier("pfs", tmp_path / "link", shared=True)


def test_a_folder_beside_the_mount_is_not(mount: Path) -> None:
    PosixTier("pfs", mount.parent / "beside", shared=True).close()


def test_a_machine_that_tells_no_mounts_refuses_nothing(tmp_path: Path) -> None:
    refuse_file_system(tmp_path, tier="pfs", mountinfo=tmp_path / "none")
