"""What bounds the segments of host memory: the configured limit, the slots, the host's room, its cgroups."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ckptstore.errors import Busy, InvalidInput, TierFull
from ckptstore_tiers.memory_limits import HostMemory
from tests.faults.segments_place import MIB, Make, PlentyOfRoom, make

__all__ = ["make"]


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
