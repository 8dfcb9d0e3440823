"""The pages of segments: all there from the start, huge where they can be, given back at the end."""

from __future__ import annotations

import gc
import mmap
import os
import random
from pathlib import Path

import pytest

from ckptstore.errors import NotFound
from ckptstore_tiers import prefault as prefault_module
from ckptstore_tiers.memory import SegmentState
from ckptstore_tiers.memory_segment import huge_pages_offered
from ckptstore_tiers.prefault import prefault
from ckptstore_tiers.shared_mapping import map_shared
from ckptstore_tiers.sources import address_of
from tests.faults.segments_place import MIB, Clock, Make, make, mapped_bytes, mappings, resident_bytes, save, settle

__all__ = ["make"]


@pytest.mark.parametrize("huge_pages", [True, False])
def test_a_new_segment_gets_all_its_pages_and_a_spare_of_the_same_size_too(make: Make, huge_pages: bool) -> None:
    pool = make(slots=2, huge_pages=huge_pages)
    first = pool.acquire("a", 5 * MIB, timeout_s=0)
    settle(pool)
    assert resident_bytes(first) == first.capacity_bytes
    assert mapped_bytes(first.view) >= first.capacity_bytes
    assert pool.usage()["segments"] == 1  # the spare is made behind the first save, not beside it
    pool.hold(first.segment_id, first.generation)
    settle(pool)
    assert pool.usage()["free_bytes"] == first.capacity_bytes
    second = pool.acquire("a", 5 * MIB, timeout_s=0)
    assert second.segment_id != first.segment_id
    assert resident_bytes(second) == second.capacity_bytes


def test_segments_are_huge_pages_here_and_in_the_client_whatever_the_systems_setting_is(make: Make) -> None:
    segment = make(slots=1).acquire("a", 7 * MIB, timeout_s=0)
    assert segment.wait_prefaulted(60)
    fd = segment.duplicate()
    in_the_client = map_shared(fd, segment.capacity_bytes)
    os.close(fd)
    for view in (segment.view, in_the_client):
        assert view[:: MIB].tobytes() == bytes(segment.capacity_bytes // MIB)
        assert mapped_bytes(view, "ShmemPmdMapped") == (segment.capacity_bytes if "on request" in huge_pages_offered() else 0)


def test_a_mapping_goes_with_its_last_view(make: Make) -> None:
    segment = make(slots=1).acquire("a", MIB, timeout_s=0)
    mapped = map_shared(segment.fd, segment.capacity_bytes)
    start, part = address_of(mapped), mapped[5:7]
    del mapped
    part[:] = b"ok"
    assert bytes(segment.view[5:7]) == b"ok"
    assert any(low <= start < high for low, high, _ in mappings())
    del part
    assert not any(low <= start < high for low, high, _ in mappings())


def test_no_spare_is_made_beyond_the_limit_or_beyond_the_slots(make: Make) -> None:
    tight, single = make(limit_bytes=4 * MIB), make(slots=1)
    for pool in (tight, single):
        segment = pool.acquire("a", 3 * MIB, timeout_s=0)
        pool.hold(segment.segment_id, segment.generation)
        settle(pool)
        assert pool.usage()["segments"] == 1


def test_a_spare_yields_to_another_owners_first_slot(make: Make) -> None:
    pool = make(limit_bytes=8 * MIB, slots=2)
    segment = pool.acquire("a", 3 * MIB, timeout_s=0)
    pool.hold(segment.segment_id, segment.generation)
    settle(pool)
    assert pool.usage()["free_bytes"] == 4 * MIB
    assert pool.acquire("b", 3 * MIB, timeout_s=0).owner == "b"


def test_a_spare_for_which_memory_ran_out_is_given_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptstore_tiers.memory_segment.prefault", lambda view, huge_pages: False)
    pool = make()
    segment = pool.acquire("a", MIB, timeout_s=0)
    pool.hold(segment.segment_id, segment.generation)
    settle(pool)
    assert pool.usage()["segments"] == 1
    assert segment.state is SegmentState.HELD


@pytest.mark.parametrize("error", [22, 12, 14], ids=["EINVAL", "ENOMEM", "EFAULT"])
def test_pages_come_without_populate_and_running_out_is_told(
    make: Make, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    memory = mmap.mmap(-1, 4 * MIB)
    view = memoryview(memory)
    monkeypatch.setattr(prefault_module, "_populate", lambda address, length: error)
    view[100] = 7
    assert prefault(view) is (error == 22)
    assert view[100] == 7
    if error == 22:
        assert mapped_bytes(view) >= 4 * MIB


def test_reserved_huge_pages_that_somebody_else_takes_first_leave_ordinary_memory(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "free").write_text("1000000")  # more than any test machine has
    monkeypatch.setattr("ckptstore_tiers.memory_segment._FREE_HUGE_PAGES", tmp_path / "free")
    segment = make(slots=1).acquire("a", 63 * MIB, timeout_s=0)
    segment.view[:5] = b"works"
    assert segment.wait_prefaulted(60)
    assert resident_bytes(segment) == segment.capacity_bytes


def test_prefaulting_never_changes_a_byte(make: Make) -> None:
    segment = make(slots=1).acquire("a", 3 * MIB, timeout_s=0)
    data = random.Random(5).randbytes(3 * MIB)
    segment.view[: len(data)] = data
    assert prefault(segment.view)
    assert segment.wait_prefaulted(60)
    assert bytes(segment.view[: len(data)]) == data


def test_closing_gives_the_memory_back_even_while_a_client_has_it_mapped(make: Make) -> None:
    pool = make(slots=1)
    segment = pool.acquire("a", 5 * MIB, timeout_s=0)
    settle(pool)
    fd = segment.duplicate()
    try:
        mapping = mmap.mmap(fd, segment.capacity_bytes)
        mapping[0] = 1
        assert os.fstat(fd).st_blocks > 0
        pool.owner_gone("a")
        assert os.fstat(fd).st_blocks == 0
        assert mapping[0] == 0
        mapping.close()
    finally:
        os.close(fd)


def test_a_view_outlives_its_segment(make: Make) -> None:
    pool = make(slots=1)
    segment = pool.acquire("a", MIB, timeout_s=0)
    view = segment.view
    view[0] = 1
    pool.owner_gone("a")
    assert view[0] == 0
    for use in (lambda: segment.view, segment.duplicate, segment.read_only_fd):
        with pytest.raises(NotFound):
            use()


def test_a_pool_leaves_no_descriptor_behind(make: Make) -> None:
    gc.collect()  # what other tests have left goes now, not in between
    before = sorted(Path("/proc/self/fd").iterdir())
    pool = make()
    for number in range(5):
        save(pool, f"owner-{number}", f"object-{number}")
    with pool.reader("object-4"):
        pass
    pool.close()
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_what_nobody_uses_is_given_back_after_its_time(make: Make) -> None:
    clock = Clock()
    pool = make(slots=1, clock=clock)
    save(pool, "a", "old")
    lent = pool.acquire("lent", MIB, timeout_s=0)
    clock.now_s += 100
    save(pool, "b", "young")
    assert pool.give_back(50) == 2 * MIB
    assert pool.find("old") is None
    assert pool.find("young") is not None
    assert lent.state is SegmentState.LENT
    clock.now_s += 60
    assert pool.find("young") is not None, "being asked for counts as use"
    assert pool.give_back(50) == 0
