"""Copies and saves on one small disk: what is saved gets the room, copies give way, and readers of them go on from where the files lie."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptstore
from tests.cache_bed import content
from tests.daemon_process import DaemonProcess, write_config
from tests.until import until

MIB = 1 << 20
DISK_BYTES, MODEL_BYTES, SAVED_BYTES = 96 * MIB, 20 * MIB, 30 * MIB
MODELS = 4  # more than the disk may hold at once


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "nvme"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(place)], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr} (this test mounts a file system: run it as root)"
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_saves_take_the_room_of_copies_and_both_are_read_right(tmp_path: Path, disk: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    for number in range(MODELS):
        (origin / str(number)).write_bytes(content(number, MODEL_BYTES))
        os.utime(origin / str(number), (1e9, 1e9))
    write_config(tmp_path / "home", tiers=[{"name": "nvme", "kind": "posix", "path": disk / "root"}], memory={"limit": "64MiB"})
    with DaemonProcess(tmp_path / "home") as daemon, ckptstore.connect(home=daemon.home, start=False) as store, daemon.http() as http:
        store.attach(str(origin), "/m")

        def read(number: int) -> bool:
            return http.get("/v1/tree/content", params={"path": f"/m/{number}"}).content == content(number, MODEL_BYTES)

        assert all(read(number) for number in range(MODELS))
        filled = store.cache.status()
        assert filled.state in ("ok", "full")
        assert 3 * MODEL_BYTES <= filled.held_bytes <= 0.9 * DISK_BYTES
        for number in range(2):
            (tmp_path / "saved").write_bytes(content(100 + number, SAVED_BYTES))
            store.put(tmp_path / "saved", f"/saved/{number}")
            until("the NVMe has it", lambda at=number: "nvme" in store.stat(f"/saved/{at}").durability)  # type: ignore[misc]
        assert store.cache.status().held_bytes <= DISK_BYTES - 2 * SAVED_BYTES
        for number in range(2):
            assert store.get(f"/saved/{number}", tmp_path / f"got {number}").read_bytes() == content(100 + number, SAVED_BYTES)
        assert all(read(number) for number in range(MODELS))
        assert [error.what for error in store.status().errors] == []
