"""The memory tier keeps what every tier promises, and gives its slots up when others need them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.errors import NotFound, TierFull
from ckptstore_tiers.interface import Tier
from ckptstore_tiers.memory import SegmentPool
from ckptstore_tiers.memory_tier import MemoryTier
from ckptstore_tiers.sources import MemorySource
from tests.contract.tier_contract import TierContract, content, new_key, stored

MIB = 1 << 20


@pytest.fixture
def pool() -> Iterator[SegmentPool]:
    pool = SegmentPool(512 * MIB, 2)
    yield pool
    pool.close()


class TestMemoryTier(TierContract):
    @pytest.fixture
    def tier(self, pool: SegmentPool) -> Iterator[Tier]:
        tier = MemoryTier(pool)
        yield tier
        tier.close()


def test_memory_is_not_durable(pool: SegmentPool) -> None:
    assert MemoryTier(pool).facts.durable is False


def test_the_facts_say_whether_huge_pages_are_offered(pool: SegmentPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ckptstore_tiers.memory_segment._collapses", lambda: False)
    for written, said in (("always [advise] never", "transparent (advise)"), ("always advise [never]", "write 'advise' to")):
        (tmp_path / "shmem_enabled").write_text(written)
        monkeypatch.setattr("ckptstore_tiers.memory_segment._SHMEM_ENABLED", tmp_path / "shmem_enabled")
        assert said in MemoryTier(pool).facts.details["huge_pages"]


def test_a_recalled_object_yields_to_a_save() -> None:
    pool = SegmentPool(8 * MIB, 1)
    tier = MemoryTier(pool)
    key, data = new_key(), content(5 * MIB)
    tier.put(key, MemorySource(data))
    assert stored(tier, key) == data
    pool.acquire("rank-0", 5 * MIB, timeout_s=0)
    with pytest.raises(NotFound):
        tier.open(key)
    assert list(tier.list("")) == []
    pool.close()


def test_a_recall_takes_no_clients_slot() -> None:
    pool = SegmentPool(8 * MIB, 1)
    segment = pool.acquire("rank-0", 5 * MIB, timeout_s=0)
    pool.hold(segment.segment_id, segment.generation)
    pool.keep_as_replica(segment, "saved", 5 * MIB)
    with pytest.raises(TierFull):
        MemoryTier(pool).put(new_key(), MemorySource(content(5 * MIB)))
    assert pool.find("saved") is not None
    pool.close()


def test_an_open_object_keeps_its_slot(pool: SegmentPool) -> None:
    tier = MemoryTier(pool)
    key, data = new_key(), content(5 * MIB)
    tier.put(key, MemorySource(data))
    reader = tier.open(key)
    tier.delete(key)
    assert pool.give_back(0) == 0
    buffer = bytearray(len(data))
    reader.read_into(0, memoryview(buffer))
    assert buffer == data
    reader.close()
    assert pool.usage()["segments"] == 0


def test_closing_the_tier_empties_its_part_of_the_pool(pool: SegmentPool) -> None:
    tier = MemoryTier(pool)
    tier.put(new_key(), MemorySource(content(100)))
    tier.close()
    assert pool.usage()["segments"] == 0
