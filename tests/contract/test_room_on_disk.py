"""What counts as a full disk: what `df` calls so, whatever the file system sets aside for root or for a quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptstore_server.readers.cache.room import Room
from ckptstore_tiers.posix_space import Space

BLOCK = 4096
#: 1,000 blocks, 300 of them written, 600 set aside: `df` says 75 %
SIZE, WRITTEN, SET_ASIDE = 1000, 300, 600


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    free = SIZE - WRITTEN
    figures = (BLOCK, BLOCK, SIZE, free, free - SET_ASIDE, 100, 50, 50, 0, 255)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(figures))
    return tmp_path


def test_what_is_set_aside_on_a_device_neither_fills_a_tier_nor_is_room_in_it(disk: Path) -> None:
    usage = Space(disk, tier="nvme", shared=False, capacity_bytes=None).usage()
    assert (usage.used_bytes, usage.limit_bytes, usage.free_bytes) == (0, 400 * BLOCK, 100 * BLOCK)
    shared = Space(disk, tier="pfs", shared=True, capacity_bytes=None).usage()
    assert (shared.used_bytes, shared.limit_bytes, shared.free_bytes) == (300 * BLOCK, 400 * BLOCK, 100 * BLOCK)


def test_the_cache_fills_such_a_device_to_its_mark(disk: Path) -> None:
    assert Room(disk, mark=0.9).allowed_bytes(held_bytes=10 * BLOCK) // BLOCK == 10 + 100 - 40
    assert Room(disk, mark=0.7).allowed_bytes(held_bytes=10 * BLOCK) == 0
