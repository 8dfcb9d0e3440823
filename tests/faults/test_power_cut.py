"""The power-cut model itself: it loses what was not fsynced, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.failpoints import declare
from ckptstore_tiers import disk_calls
from tests.faults.power_cut import Image, PowerCutDisk, Survives

LABEL = declare("test.power_cut")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "old").write_bytes(b"old")
    return folder


@pytest.fixture
def disk(root: Path) -> Iterator[PowerCutDisk]:
    disk = PowerCutDisk(root)
    with disk_calls.witnessed_by(disk):
        yield disk


def write(root: Path, name: str, data: bytes, *, sync: bool) -> None:
    folder = disk_calls.open_folder(LABEL, str(root))
    fd = disk_calls.open_file(LABEL, name, os.O_WRONLY | os.O_CREAT, dir_fd=folder)
    disk_calls.pwrite(LABEL, fd, memoryview(data), 0)
    if sync:
        disk_calls.fsync(LABEL, fd)
    os.close(fd)
    os.close(folder)


def sync_folder(root: Path) -> None:
    folder = disk_calls.open_folder(LABEL, str(root))
    disk_calls.fsync(LABEL, folder)
    os.close(folder)


def test_a_file_whose_folder_was_not_fsynced_is_lost(root: Path, disk: PowerCutDisk) -> None:
    write(root, "new", b"data", sync=True)
    assert disk.now().images[Survives.STRICT] == Image({"old": b"old"})
    assert disk.now().images[Survives.NAMES_KEPT] == Image({"old": b"old", "new": b"data"})
    sync_folder(root)
    assert disk.now().images[Survives.STRICT] == Image({"old": b"old", "new": b"data"})


def test_a_file_that_was_not_fsynced_is_empty_though_its_name_is_there(root: Path, disk: PowerCutDisk) -> None:
    write(root, "new", b"data", sync=False)
    sync_folder(root)
    assert disk.now().images[Survives.STRICT] == Image({"old": b"old", "new": b""})
    assert disk.now().images[Survives.ALL_KEPT] == Image({"old": b"old", "new": b"data"})


def test_a_rename_or_unlink_that_was_not_fsynced_never_happened(root: Path, disk: PowerCutDisk) -> None:
    folder = disk_calls.open_folder(LABEL, str(root))
    disk_calls.rename(LABEL, "old", "renamed", dir_fd=folder, new_dir_fd=folder)
    assert disk.now().images[Survives.STRICT] == Image({"old": b"old"})
    disk_calls.fsync(LABEL, folder)
    disk_calls.unlink(LABEL, "renamed", dir_fd=folder)
    assert disk.now().images[Survives.STRICT] == Image({"renamed": b"old"})
    assert disk.now().images[Survives.NAMES_KEPT] == Image({})
    os.close(folder)


def test_what_is_below_a_folder_without_a_durable_name_is_lost_with_it(root: Path, disk: PowerCutDisk) -> None:
    folder = disk_calls.open_folder(LABEL, str(root))
    disk_calls.mkdir(LABEL, "sub", dir_fd=folder)
    os.close(folder)
    write(root / "sub", "file", b"data", sync=True)
    sync_folder(root / "sub")
    assert disk.now().images[Survives.STRICT] == Image({"old": b"old"})
    sync_folder(root)
    assert disk.now().images[Survives.STRICT] == Image({"old": b"old", "sub": Image({"file": b"data"})})


def test_an_image_can_be_written_out(root: Path, disk: PowerCutDisk, tmp_path: Path) -> None:
    Image({"a": b"1", "b": Image({"c": b"2"})}).materialise(tmp_path / "copy")
    assert (tmp_path / "copy/b/c").read_bytes() == b"2"
    assert (tmp_path / "copy/a").read_bytes() == b"1"
