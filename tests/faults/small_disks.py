"""Small real file systems that stand for the disks of a store: a tmpfs that a test can fill and make read-only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ckptstore_client import Store
from tests.faults.fault_store import FaultStore, posix_tier
from tests.until import until

MIB = 1 << 20


class Disk:
    """A tmpfs that a test can fill and make read-only."""

    def __init__(self, place: Path, size_bytes: int) -> None:
        self.place = place
        self.size_bytes = size_bytes
        place.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(place))

    def fill(self) -> None:
        with open(self.place / "filler", "wb", buffering=0) as filler:
            try:
                while filler.write(bytes(64 << 10)):
                    pass
            except OSError:
                pass

    def empty(self) -> None:
        (self.place / "filler").unlink()

    def make(self, mode: str) -> None:
        """`ro` or `rw`; a file that is open for writing delays it."""
        command = ["mount", "-o", f"remount,{mode}", self.place]
        until(f"the disk is {mode}", lambda: subprocess.run(command, capture_output=True).returncode == 0)

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.place)
        return found.f_bavail * found.f_frsize

    def unmount(self) -> None:
        run("umount", "-l", str(self.place))


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr} (these tests mount file systems: run them as root)"


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[tuple[Disk, Disk]]:
    """`nvme` of 24 MiB and `pfs` of 96 MiB."""
    mounted: list[Disk] = []
    try:
        for name, size_bytes in (("nvme", 24 * MIB), ("pfs", 96 * MIB)):
            mounted.append(Disk(tmp_path / name, size_bytes))
        yield mounted[0], mounted[1]
    finally:
        for disk in mounted:
            disk.unmount()


@contextmanager
def started(folder: Path, *disks: Disk, failpoints: str = "", **settings: Any) -> Iterator[tuple[FaultStore, Store]]:
    names = [disk.place.name for disk in disks]
    tiers = [posix_tier(name, folder / name / "root", shared=name == "pfs", **settings.pop(name, {})) for name in names]
    with FaultStore(folder / "home", tiers, settings=settings) as place:
        place.start(failpoints)
        yield place, place.connect()
