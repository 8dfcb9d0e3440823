"""Which state `status` shows for a tier follows from what it takes, not from what else can be done with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.config import TierSettings
from ckptstore.errors import TierFull
from ckptstore_server.lane import Lane
from ckptstore_server.pressure import Gauge
from ckptstore_server.quiet import QuietBudget
from ckptstore_server.tier_handle import TierHandle
from ckptstore_tiers.sources import MemorySource

CAPACITY_BYTES = 1 << 20


@pytest.fixture
def handle(tmp_path: Path) -> Iterator[TierHandle]:
    settings = TierSettings(name="nvme", kind="posix", path=tmp_path / "nvme", capacity=CAPACITY_BYTES)
    lane = Lane(QuietBudget(Gauge(), 0.5))
    handle = TierHandle(
        settings, home=tmp_path, store_id="a store", unfinished_names=lambda name: [], mark_lost=lambda name: 0, lane=lane
    )
    yield handle
    handle.close()


def put(handle: TierHandle, key: str, size_bytes: int) -> None:
    with handle.watched(writes=True) as tier:
        tier.put(key, MemorySource(memoryview(bytes(size_bytes))))


@pytest.fixture
def full(handle: TierHandle) -> TierHandle:
    put(handle, "objects/there", CAPACITY_BYTES // 2)
    assert handle.state == "ok"
    with pytest.raises(TierFull):
        put(handle, "objects/too-much", CAPACITY_BYTES)
    assert handle.state == "full"
    return handle


def test_a_full_tier_that_can_be_read_is_still_full(full: TierHandle) -> None:
    with full.watched() as tier:
        assert tier.stat("objects/there").size_bytes == CAPACITY_BYTES // 2
        tier.delete("objects/was-never-there")
    assert full.state == "full"


def test_a_full_tier_that_takes_something_is_not_full(full: TierHandle) -> None:
    put(full, "objects/small", 4096)
    assert full.state == "ok"


def test_a_full_tier_in_which_room_was_made_is_not_full(full: TierHandle) -> None:
    with full.watched() as tier:
        tier.delete("objects/there")
    with full.watched() as tier:
        assert list(tier.list("objects")) == []
    assert full.state == "ok"
