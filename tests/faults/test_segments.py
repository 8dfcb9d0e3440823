"""Segments of host memory: whose they are, and what a hostile owner can do to them."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillWaiting

import pytest

from ckptstore.errors import Busy, ChecksumMismatch, InvalidInput, NotFound
from ckptstore_tiers.memory import RECALL_OWNER, Segment, SegmentPool, SegmentState
from tests.faults.segments_place import MIB, Clock, Make, make, save

__all__ = ["make"]


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
