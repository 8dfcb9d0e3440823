"""Segments of host memory: whose they are, what bounds them, and what a hostile owner can do to them."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillWaiting
from pathlib import Path

import pytest

from ckptstore.errors import Busy, ChecksumMismatch, InvalidInput, NotFound, TierFull
from ckptstore_tiers import prefault as prefault_module
from ckptstore_tiers.memory import RECALL_OWNER, Segment, SegmentPool, SegmentState
from ckptstore_tiers.memory_limits import HostMemory, Room
from ckptstore_tiers.memory_segment import huge_pages_offered
from ckptstore_tiers.prefault import prefault
from ckptstore_tiers.shared_mapping import map_shared
from ckptstore_tiers.sources import address_of

MIB = 1 << 20


class PlentyOfRoom(HostMemory):
    """A host whose room the test sets."""

    def __init__(self, size_bytes: int = 1 << 40) -> None:
        self.size_bytes = size_bytes

    def room(self) -> Room:
        return Room(self.size_bytes, "the test's bound")


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


Make = Callable[..., SegmentPool]


@pytest.fixture
def make() -> Iterator[Make]:
    pools: list[SegmentPool] = []

    def make(limit_bytes: int | None = 64 * MIB, slots: int = 2, **options: object) -> SegmentPool:
        options.setdefault("host", PlentyOfRoom())
        pools.append(SegmentPool(limit_bytes, slots, **options))  # type: ignore[arg-type]
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def save(pool: SegmentPool, owner: str, object_id: str, size_bytes: int = MIB) -> Segment:
    """What a whole save leaves: a replica."""
    segment = pool.acquire(owner, size_bytes, timeout_s=0)
    pool.hold(segment.segment_id, segment.generation, owner=owner)
    pool.keep_as_replica(segment, object_id, size_bytes)
    return segment


def settle(pool: SegmentPool) -> None:
    """Everything that the pool does behind its callers has been done."""
    for threads in (pool._prefaulter, pool._spare_maker):
        threads.submit(int).result(60)  # what was submitted before has begun
    for slot in list(pool._slots.values()):
        assert slot.prefaulted.wait(60)
    pool._spare_maker.submit(int).result(60)


def resident_bytes(segment: Segment) -> int:
    return os.fstat(segment.fd).st_blocks * 512


def mappings() -> Iterator[tuple[int, int, dict[str, int]]]:
    """(start, end, sizes in bytes by their names in smaps) of each mapping of this process."""
    low, high, sizes = 0, 0, dict[str, int]()
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            yield low, high, sizes
            low, high, sizes = int(match[1], 16), int(match[2], 16), {}
        elif match := re.match(r"(\w+): +(\d+) kB", line):
            sizes[match[1]] = int(match[2]) * 1024
    yield low, high, sizes


def mapped_bytes(view: memoryview, what: str = "Rss") -> int:
    """Resident bytes of the mapping that `view` lies in, as this process's page table has them; 0 if nothing is mapped there."""
    return sum(sizes[what] for low, high, sizes in mappings() if low <= address_of(view) < high)


# --- whose a slot is ---------------------------------------------------------------------------------------------------------------


def test_a_slot_serves_its_owner_again_with_a_new_generation(make: Make) -> None:
    pool = make(slots=1)
    first = pool.acquire("a", MIB, timeout_s=0)
    pool.release(first)
    second = pool.acquire("a", MIB, timeout_s=0)
    assert second.segment_id == first.segment_id
    assert second.generation == first.generation + 1
    assert first.state is SegmentState.FREE
    assert second.state is SegmentState.LENT


def test_a_slot_never_passes_to_another_owner(make: Make) -> None:
    pool = make(limit_bytes=4 * MIB, slots=1)
    first = pool.acquire("a", MIB, timeout_s=0)
    inode = os.fstat(first.fd).st_ino
    first.view[:5] = b"secret"[:5]
    pool.owner_gone("a")
    second = pool.acquire("b", MIB, timeout_s=0)
    assert second.segment_id != first.segment_id
    assert os.fstat(second.fd).st_ino != inode
    assert bytes(second.view[:5]) == bytes(5)


def test_free_slots_of_a_live_owner_are_closed_and_not_reused_by_another(make: Make) -> None:
    pool = make(limit_bytes=4 * MIB, slots=1)
    first = pool.acquire("a", 3 * MIB, timeout_s=0)
    pool.release(first)
    second = pool.acquire("b", 3 * MIB, timeout_s=0)
    assert second.segment_id != first.segment_id
    with pytest.raises(NotFound):
        _ = first.view


def test_two_slots_overlap_and_a_third_save_waits_for_one(make: Make) -> None:
    pool = make(slots=2)
    first = pool.acquire("a", MIB, timeout_s=0)
    pool.acquire("a", MIB, timeout_s=0)
    with pytest.raises(Busy, match="slots") as caught:
        pool.acquire("a", MIB, timeout_s=0)
    assert "memory.slots" in (caught.value.hint or "")
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(pool.acquire, "a", MIB, timeout_s=60)
        with pytest.raises(StillWaiting):
            waiting.result(0.05)
        pool.release(first)
        assert waiting.result(60).segment_id == first.segment_id


def test_a_wait_for_a_slot_ends_when_its_owner_goes(make: Make) -> None:
    pool = make(slots=1)
    pool.acquire("a", MIB, timeout_s=0)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(pool.acquire, "a", MIB, timeout_s=60)
        pool.owner_gone("a")
        with pytest.raises(NotFound, match="session has ended"):
            waiting.result(60)
    assert pool.usage()["segments"] == 0


def test_a_wait_for_a_slot_ends_when_the_pool_is_closed(make: Make) -> None:
    pool = make(slots=1)
    pool.acquire("a", MIB, timeout_s=0)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(pool.acquire, "a", MIB, timeout_s=60)
        pool.close()
        with pytest.raises(Busy, match="stopping"):
            waiting.result(60)


def test_an_empty_slot_is_reused_before_a_replica_and_the_older_replica_before_the_newer(make: Make) -> None:
    clock = Clock()
    pool = make(slots=3, clock=clock)
    segments = [pool.acquire("a", MIB, timeout_s=0) for _ in range(3)]
    for number in (1, 0):
        clock.now_s += 1
        pool.hold(segments[number].segment_id, segments[number].generation)
        pool.keep_as_replica(segments[number], f"object-{number}", MIB)
    pool.release(segments[2])
    clock.now_s += 1
    pool.reader("object-1").close()  # a drain that reads the older one does not make it the newer
    assert pool.acquire("a", MIB, timeout_s=0).segment_id == segments[2].segment_id
    assert pool.acquire("a", MIB, timeout_s=0).segment_id == segments[1].segment_id
    assert pool.find("object-1") is None
    assert pool.find("object-0") is not None


def test_a_state_that_outgrew_its_slots_gets_a_larger_one_in_place_of_one_of_them(make: Make) -> None:
    pool = make(slots=2)
    save(pool, "a", "old")
    save(pool, "a", "new")
    larger = pool.acquire("a", 20 * MIB, timeout_s=0)
    assert larger.capacity_bytes >= 20 * MIB
    assert len([slot for slot in pool._slots.values() if slot.owner == "a"]) == 2
    assert pool.find("old") is None


def test_a_header_that_grows_a_little_fits_the_same_slot(make: Make) -> None:
    pool = make(slots=1)
    first = pool.acquire("a", 4 * MIB, timeout_s=0)
    pool.release(first)
    assert first.capacity_bytes % (2 * MIB) == 0
    assert pool.acquire("a", 4 * MIB + 100_000, timeout_s=0).segment_id == first.segment_id


# --- hand-over and replicas --------------------------------------------------------------------------------------------------------


def test_hand_over_takes_only_what_is_lent_to_that_owner_in_that_use(make: Make) -> None:
    pool = make()
    segment = pool.acquire("a", MIB, timeout_s=0)
    with pytest.raises(NotFound):
        pool.hold(segment.segment_id, segment.generation, owner="b")
    with pytest.raises(NotFound):
        pool.hold("0" * 32, 1)
    with pytest.raises(InvalidInput):
        pool.hold(segment.segment_id, segment.generation + 1)
    pool.hold(segment.segment_id, segment.generation, owner="a")
    with pytest.raises(InvalidInput, match="held"):
        pool.hold(segment.segment_id, segment.generation, owner="a")
    with pytest.raises(NotFound):
        pool.lent(segment.segment_id, "a")


def test_a_late_call_about_an_earlier_use_changes_nothing(make: Make) -> None:
    pool = make(slots=1)
    first = pool.acquire("a", MIB, timeout_s=0)
    pool.hold(first.segment_id, first.generation)
    pool.release(first)
    second = pool.acquire("a", MIB, timeout_s=0)
    pool.release(first)
    assert second.state is SegmentState.LENT
    with pytest.raises(InvalidInput):
        pool.keep_as_replica(first, "object", 10)
    assert pool.find("object") is None


@pytest.mark.parametrize("size_bytes", [-1, 1 << 50])
def test_a_claimed_size_beyond_the_segment_is_refused(make: Make, size_bytes: int) -> None:
    pool = make()
    segment = pool.acquire("a", MIB, timeout_s=0)
    pool.hold(segment.segment_id, segment.generation)
    with pytest.raises(InvalidInput):
        pool.keep_as_replica(segment, "object", size_bytes)
    assert pool.find("object") is None


def five_saved_bytes(pool: SegmentPool) -> Segment:
    """`saved`, as the replica `object` of owner `a`."""
    segment = pool.acquire("a", MIB, timeout_s=0)
    segment.view[:5] = b"saved"
    pool.hold(segment.segment_id, segment.generation)
    pool.keep_as_replica(segment, "object", 5)
    return segment


def test_an_open_replica_keeps_its_slot_from_reuse_until_it_is_closed(make: Make) -> None:
    pool = make(slots=1)
    segment = five_saved_bytes(pool)
    with pool.reader("object") as reader:
        with pytest.raises(Busy):
            pool.acquire("a", MIB, timeout_s=0)
        assert bytes(reader.view) == b"saved"
        assert reader.size_bytes == 5
        with pytest.raises(ChecksumMismatch):
            reader.read_into(1, memoryview(bytearray(5)))
    assert pool.acquire("a", MIB, timeout_s=0).segment_id == segment.segment_id
    with pytest.raises(NotFound):
        pool.reader("object")


def test_a_lent_replica_cannot_be_written_by_its_reader(make: Make) -> None:
    pool = make()
    fd = save(pool, "a", "object").read_only_fd()
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(fd, MIB, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(fd)


def test_what_the_daemon_holds_outlives_its_owner_and_goes_when_released(make: Make) -> None:
    pool = make(slots=3)
    lent, held = (pool.acquire("a", MIB, timeout_s=0) for _ in range(2))
    held.view[:4] = b"mine"
    pool.hold(held.segment_id, held.generation)
    save(pool, "a", "object")
    pool.owner_gone("a")
    with pytest.raises(NotFound):
        _ = lent.view
    assert bytes(held.view[:4]) == b"mine"
    assert pool.find("object") is not None
    pool.release(held)
    assert pool.usage()["held_bytes"] == 0
    assert pool.usage()["free_bytes"] == 0


def test_a_replica_of_a_gone_owner_goes_first_when_memory_is_needed(make: Make) -> None:
    clock = Clock()
    pool = make(limit_bytes=12 * MIB, slots=1, clock=clock)
    save(pool, "live", "old", 3 * MIB)
    clock.now_s += 1
    save(pool, "gone", "new", 3 * MIB)
    pool.owner_gone("gone")
    pool.acquire("other", 5 * MIB, timeout_s=0)
    assert pool.find("new") is None
    assert pool.find("old") is not None


def test_a_pinned_replica_is_never_evicted_for_memory(make: Make) -> None:
    pool = make(limit_bytes=4 * MIB, slots=1)
    save(pool, "a", "object", 3 * MIB)
    pool.owner_gone("a")
    reader = pool.reader("object")
    with pytest.raises(Busy, match="memory limit"):
        pool.acquire("b", 3 * MIB, timeout_s=0)
    reader.close()
    assert pool.acquire("b", 3 * MIB, timeout_s=0).state is SegmentState.LENT


def test_nothing_is_evicted_when_it_would_not_suffice(make: Make) -> None:
    pool = make(limit_bytes=12 * MIB, slots=1)
    pool.acquire("busy", 7 * MIB, timeout_s=0)
    save(pool, "a", "object", MIB)
    pool.owner_gone("a")
    with pytest.raises(Busy):
        pool.acquire("b", 7 * MIB, timeout_s=0)
    assert pool.find("object") is not None


def test_a_forgotten_object_is_gone_and_its_slot_is_its_owners_again(make: Make) -> None:
    pool = make(slots=1)
    segment = save(pool, "a", "object")
    pool.forget("object")
    pool.forget("object")
    assert pool.find("object") is None
    assert pool.acquire("a", MIB, timeout_s=0).segment_id == segment.segment_id


def test_a_forgotten_object_is_read_on_by_who_has_it_open_also_when_its_owner_goes(make: Make) -> None:
    pool = make(slots=1)
    five_saved_bytes(pool)
    with pool.reader("object") as reader:
        pool.forget("object")
        pool.owner_gone("a")
        assert pool.give_back(0) == 0
        assert bytes(reader.view) == b"saved"
    assert pool.usage()["segments"] == 0


# --- limits ------------------------------------------------------------------------------------------------------------------------


def test_what_can_never_fit_is_refused_at_once(make: Make) -> None:
    pool = make(limit_bytes=8 * MIB)
    with pytest.raises(TierFull, match="never") as caught:
        pool.acquire("a", 9 * MIB, timeout_s=3600)
    assert "memory.limit" in (caught.value.hint or "")
    with pytest.raises(TierFull):
        pool.acquire("a", 1 << 62, timeout_s=3600)
    with pytest.raises(InvalidInput):
        pool.acquire("a", -1, timeout_s=0)
    assert pool.acquire("a", 8 * MIB, timeout_s=0).capacity_bytes == 8 * MIB


def test_a_full_memory_limit_is_told_apart_from_used_up_slots(make: Make) -> None:
    pool = make(limit_bytes=4 * MIB, slots=2)
    pool.acquire("a", 3 * MIB, timeout_s=0)
    with pytest.raises(Busy, match="memory limit of 4194304 bytes"):
        pool.acquire("b", 3 * MIB, timeout_s=0)


def test_a_new_slot_needs_room_on_the_host_also_for_what_was_promised_before(make: Make) -> None:
    host = PlentyOfRoom(0)
    pool = make(host=host, slots=1)
    with pytest.raises(Busy, match="the test's bound leaves 0 bytes"):
        pool.acquire("a", MIB, timeout_s=0)
    host.size_bytes = 2 * MIB
    segment = pool.acquire("a", MIB, timeout_s=0)
    segment.wait_prefaulted(60)
    assert pool.acquire("b", MIB, timeout_s=0).owner == "b", "the first has its pages: what is free now is for the second"


def test_a_promise_without_pages_counts_against_the_hosts_room(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptstore_tiers.memory_segment.prefault", lambda view, huge_pages: False)
    host = PlentyOfRoom(2 * MIB)
    pool = make(host=host, slots=1)
    first = pool.acquire("a", MIB, timeout_s=0)
    with pytest.raises(Busy):
        pool.acquire("b", MIB, timeout_s=0)
    pool.release(first)
    assert pool.acquire("b", MIB, timeout_s=0).owner == "b", "giving up a promise makes room for another"


def test_the_default_limit_is_half_of_the_room_at_start(make: Make) -> None:
    assert make(limit_bytes=None, host=PlentyOfRoom(10 * MIB)).limit_bytes == 5 * MIB


def test_room_that_appears_on_the_host_ends_a_wait(make: Make) -> None:
    host = PlentyOfRoom(0)
    pool = make(host=host, slots=1)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(pool.acquire, "a", MIB, timeout_s=60)
        host.size_bytes = 64 * MIB
        assert waiting.result(60).owner == "a"


class FakeProc:
    """What /proc and the cgroup file systems show, in a folder."""

    def __init__(self, root: Path, *, available_bytes: int) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)
        meminfo = f"MemTotal: {100 << 20} kB\nMemFree: 1 kB\nMemAvailable: {available_bytes >> 10} kB\n"
        (root / "proc/meminfo").write_text(meminfo)

    def mounts(self, *mounts: tuple[str, str, str], path: str) -> HostMemory:
        """(kind, root, folder) of each mount; `path` is what /proc/self/cgroup says for all."""
        lines = ["22 1 8:1 / / rw - ext4 /dev/sda rw\n"]
        for kind, root, folder in mounts:
            option = "memory" if kind == "cgroup" else "nsdelegate"
            lines.append(f"30 25 0:26 {root} {self.root / folder} rw,nosuid - {kind} cgroup rw,{option}\n")
        (self.root / "proc/self/mountinfo").write_text("".join(lines))
        (self.root / "proc/self/cgroup").write_text(f"4:memory:{path}\n0::{path}\n")
        return HostMemory(self.root / "proc")

    def group(self, folder: str, *, limit: str, used: int, cached: int = 0, version: int = 2) -> None:
        place = self.root / folder
        place.mkdir(parents=True, exist_ok=True)
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        (place / names[0]).write_text(f"{limit}\n")
        (place / names[1]).write_text(f"{used}\n")
        (place / "memory.stat").write_text(f"anon 5\n{'inactive_file' if version == 2 else 'total_inactive_file'} {cached}\n")


GIB = 1 << 30


def test_free_memory_bounds_the_room_less_a_reserve(tmp_path: Path) -> None:
    room = FakeProc(tmp_path, available_bytes=10 * GIB).mounts(path="/").room()
    assert room.size_bytes == 9 * GIB
    assert "MemAvailable" in room.bound


@pytest.mark.parametrize("tight", ["group/job/step", "group/job", "group"])
def test_every_cgroup_above_bounds_the_room(tmp_path: Path, tight: str) -> None:
    proc = FakeProc(tmp_path, available_bytes=90 * GIB)
    for folder in ("group/job/step", "group/job"):
        proc.group(folder, limit="max", used=0)
    proc.group(tight, limit=str(40 * GIB), used=30 * GIB, cached=5 * GIB)
    room = proc.mounts(("cgroup2", "/", "group"), path="/job/step").room()
    assert room.size_bytes == 14 * GIB
    assert str(tmp_path / tight) in room.bound


def test_the_memory_controller_of_version_1_bounds_the_room(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path, available_bytes=90 * GIB)
    proc.group("memory/docker/abc", limit=str(4 * GIB), used=1 * GIB, version=1)
    proc.group("memory", limit="9223372036854771712", used=50 * GIB, version=1)
    room = proc.mounts(("cgroup", "/", "memory"), ("cgroup2", "/", "unified"), path="/docker/abc").room()
    assert room.size_bytes == 3 * GIB - 4 * GIB // 20


def test_a_container_that_sees_only_its_own_cgroup_is_bounded_by_it(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path, available_bytes=90 * GIB)
    proc.group("memory", limit=str(4 * GIB), used=1 * GIB, version=1)
    room = proc.mounts(("cgroup", "/docker/abc", "memory"), path="/docker/abc").room()
    assert room.size_bytes == 3 * GIB - 4 * GIB // 20


def test_a_cgroup_over_its_limit_leaves_no_room_and_never_less(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path, available_bytes=90 * GIB)
    proc.group("group", limit=str(GIB), used=2 * GIB)
    assert proc.mounts(("cgroup2", "/", "group"), path="/").room().size_bytes == 0


def test_this_machine_has_some_room() -> None:
    assert 0 < HostMemory().room().size_bytes < 1 << 50


# --- pages -------------------------------------------------------------------------------------------------------------------------


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


# --- hostile owners ----------------------------------------------------------------------------------------------------------------


def test_a_client_cannot_resize_or_reseal_its_segment(make: Make) -> None:
    pool = make(slots=1)
    segment = pool.acquire("a", MIB, timeout_s=0)
    fd = segment.duplicate()
    try:
        for size_bytes in (0, segment.capacity_bytes - 1, segment.capacity_bytes + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size_bytes)
        with pytest.raises(PermissionError):
            os.posix_fallocate(fd, 0, segment.capacity_bytes + 1)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", segment.capacity_bytes)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, 1033, 0x8)  # F_SEAL_WRITE would make the daemon's mapping fail
        assert os.fstat(fd).st_size == segment.capacity_bytes
    finally:
        os.close(fd)


def test_a_client_that_punches_holes_into_a_held_segment_harms_only_its_bytes(make: Make) -> None:
    pool = make(slots=1)
    segment = pool.acquire("a", MIB, timeout_s=0)
    fd = segment.duplicate()
    segment.view[:4] = b"data"
    held = pool.hold(segment.segment_id, segment.generation)
    os.set_inheritable(fd, True)
    subprocess.run(["fallocate", "--punch-hole", "-l", str(MIB), f"/proc/self/fd/{fd}"], check=True, pass_fds=[fd])
    os.close(fd)
    assert bytes(held.view[:4]) == bytes(4)
    pool.release(held)
    assert pool.acquire("a", MIB, timeout_s=0).state is SegmentState.LENT


def test_the_bytes_outlive_a_client_that_is_killed(make: Make) -> None:
    pool = make(slots=1)
    segment = pool.acquire("a", MIB, timeout_s=0)
    fd = segment.duplicate()
    script = (
        "import mmap, os, signal, sys; m = mmap.mmap(int(sys.argv[1]), 1 << 20); m[:5] = b'alive'; os.kill(os.getpid(), signal.SIGKILL)"
    )
    died = subprocess.run([sys.executable, "-c", script, str(fd)], pass_fds=[fd], check=False)
    os.close(fd)
    assert died.returncode == -signal.SIGKILL
    pool.hold(segment.segment_id, segment.generation)
    pool.owner_gone("a")
    pool.keep_as_replica(segment, "object", 5)
    with pool.reader("object") as reader:
        assert bytes(reader.view) == b"alive"


# --- everything at once ------------------------------------------------------------------------------------------------------------


def test_under_contention_the_limit_holds_and_no_two_uses_share_a_slot(make: Make) -> None:
    pool = make(limit_bytes=24 * MIB, slots=2)
    inodes: dict[int, str] = {}
    in_use: set[str] = set()
    guard = threading.Lock()

    def client(number: int) -> int:
        chance, done = random.Random(number), 0
        owner = f"owner-{number}"
        for turn in range(40):
            try:
                segment = pool.acquire(owner, chance.choice([1, 3, 5]) * MIB, timeout_s=chance.choice([0, 0.01, 5]))
            except Busy:
                continue
            inode = os.fstat(segment.fd).st_ino
            with guard:
                assert inodes.setdefault(inode, owner) == owner or segment.generation == 1
                inodes[inode] = owner  # the kernel may give a closed file's number to a new one
                assert segment.segment_id not in in_use
                in_use.add(segment.segment_id)
            segment.view[:8] = turn.to_bytes(8, "little")
            usage = pool.usage()
            assert sum(usage[f"{state.value}_bytes"] for state in SegmentState) <= pool.limit_bytes
            pool.hold(segment.segment_id, segment.generation, owner=owner)
            assert bytes(segment.view[:8]) == turn.to_bytes(8, "little")
            with guard:
                in_use.remove(segment.segment_id)
            if chance.random() < 0.5:
                pool.keep_as_replica(segment, f"{owner}-{turn}", 8)
            else:
                pool.release(segment)
            if chance.random() < 0.1:
                pool.give_back(0)
            done += 1
        pool.owner_gone(owner)
        return done

    with ThreadPoolExecutor(6) as threads:
        assert min(threads.map(client, range(6))) > 0
    pool.give_back(0)
    assert pool.usage()["segments"] == 0


def test_recalled_objects_are_not_bound_by_the_slots_of_an_owner(make: Make) -> None:
    pool = make(slots=1)
    for number in range(5):
        save(pool, RECALL_OWNER, f"object-{number}")
    assert all(pool.find(f"object-{number}") for number in range(5))
