"""A shared tier's folder on another type of file system than before is an unmounted mount point, not the tier."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptstore.config import TierSettings
from ckptstore.errors import TierUnavailable
from ckptstore_server import mounted
from ckptstore_server.mounted import check_mounted

EXT4 = "21 1 8:1 / / rw - ext4 /dev/root rw\n"
MOUNTED = EXT4 + "22 21 0:40 / /mnt/pfs rw - lustre mgs@tcp:/pfs rw\n"


def tell(monkeypatch: pytest.MonkeyPatch, folder: Path, mountinfo: str) -> None:
    file = folder / "mountinfo"
    file.write_text(mountinfo)
    monkeypatch.setattr(mounted, "MOUNTINFO", file)


def test_an_unmounted_shared_tier_is_unavailable_until_it_is_mounted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TierSettings(name="pfs", kind="posix", path=Path("/mnt/pfs/store"), shared=True)
    tell(monkeypatch, tmp_path, MOUNTED)
    check_mounted(settings, tmp_path)
    tell(monkeypatch, tmp_path, EXT4)
    with pytest.raises(TierUnavailable, match="of type lustre, now it is on ext4"):
        check_mounted(settings, tmp_path)
    tell(monkeypatch, tmp_path, MOUNTED)
    check_mounted(settings, tmp_path)


def test_a_nodes_own_disk_may_be_replaced_by_one_of_another_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TierSettings(name="nvme", kind="posix", path=Path("/mnt/pfs/store"), shared=False)
    tell(monkeypatch, tmp_path, MOUNTED)
    check_mounted(settings, tmp_path)
    tell(monkeypatch, tmp_path, EXT4)
    check_mounted(settings, tmp_path)
    assert not (tmp_path / "mounts").exists()
