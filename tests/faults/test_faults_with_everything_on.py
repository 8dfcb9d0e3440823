"""Full, broken and damaged disks, met by saves that are guarded and incremental, over tiers that compress.

What such a checkpoint refers to lies in the files of those before it: each test ends with all of them loaded and verified.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ckptstore.errors import ChecksumMismatch
from ckptstore_client import Store
from tests.faults.everything_on import assert_saved, save
from tests.faults.fault_store import FaultStore, objects_below, posix_tier, tier_status, verified
from tests.faults.small_disks import Disk, disks, started
from tests.until import until

__all__ = ["disks"]

BOTH = ["nvme", "pfs"]
STEPS = range(4)


@contextmanager
def compressing(folder: Path, failpoints: str = "", *, nvme: str = "float", pfs: str = "zstd") -> Iterator[tuple[FaultStore, Store]]:
    tiers = [posix_tier("nvme", folder / "nvme", compression=nvme), posix_tier("pfs", folder / "pfs", shared=True, compression=pfs)]
    with FaultStore(folder / "home", tiers) as place:
        place.start(failpoints)
        yield place, place.connect()


def at(step: int) -> str:
    return f"/run/step-{step}"


def check_all(place: FaultStore, *, forget: bool = True, in_both: Sequence[int] = STEPS) -> None:
    """All steps are there as they were, and these in both tiers; by default not from memory."""
    store = place.connect()
    for step in in_both:
        until("both tiers have it", lambda step=step: store.stat(at(step)).durability == BOTH)
    if forget:
        place.daemon.kill()
        place.start()
        store = place.connect()
    for step in STEPS:
        assert_saved(store.load(at(step)), step)
    assert verified(store) == []


def wiped(place: FaultStore, tier: str) -> None:
    """The tier has lost every object while the daemon was away."""
    place.daemon.stop()
    for file in objects_below(place.root(tier)):
        file.unlink()
    place.start()


def test_a_nearer_disk_that_is_full_for_a_while_leaves_every_link_of_the_chain(tmp_path: Path, disks: tuple[Disk, Disk]) -> None:
    nvme, pfs = disks
    with started(tmp_path, nvme, pfs, pfs={"compression": "zstd"}) as (place, store):
        save(store, at(0), 0).wait("pfs", timeout_s=60)
        nvme.fill()
        for step in STEPS[1:]:
            pending = save(store, at(step), step)
            pending.wait("pfs", timeout_s=60)
            assert pending.durability == ["pfs"]
        assert tier_status(store.status(), "nvme").state == "full"
        for step in STEPS:
            assert_saved(store.load(at(step)), step)
        nvme.empty()
        check_all(place, in_both=())  # a disk that others fill keeps nothing that is safe below


def test_a_deeper_disk_that_is_full_for_a_while_delays_the_drain_and_nothing_else(tmp_path: Path, disks: tuple[Disk, Disk]) -> None:
    nvme, pfs = disks
    with started(tmp_path, nvme, pfs, nvme={"compression": "float"}, pfs={"compression": "zstd"}) as (place, store):
        save(store, at(0), 0).wait("pfs", timeout_s=60)
        pfs.fill()
        for step in STEPS[1:]:
            save(store, at(step), step).wait("nvme", timeout_s=60)
        until("the tier is called full", lambda: tier_status(store.status(), "pfs").state == "full")
        pfs.empty()
        check_all(place)


@pytest.mark.parametrize("call", ["write", "fsync", "fallocate", "publish", "fsync_folder", "create"])
def test_an_io_error_costs_a_try_and_no_checkpoint(tmp_path: Path, call: str) -> None:
    with compressing(tmp_path, f"posix.put.{call}=eio@12") as (place, store):
        for step in STEPS:
            save(store, at(step), step).wait("pfs", timeout_s=60)
        check_all(place, forget=False)
        assert [tier.state for tier in store.status().tiers] == ["ok", "ok"]


def test_a_chain_is_read_from_the_compressed_tier_alone_and_the_nearer_one_is_mended(tmp_path: Path) -> None:
    with compressing(tmp_path) as (place, store):
        for step in STEPS:
            save(store, at(step), step).wait("pfs", timeout_s=60)
        check_all(place)
        wiped(place, "nvme")
        store = place.connect()
        for step in reversed(STEPS):
            assert_saved(store.load(at(step)), step)
        store.verify("/")  # which finds out what is gone, and has it copied
        until("the nearer tier has all of it again", lambda: verified(store) == [])
        wiped(place, "pfs")
        for step in STEPS:
            assert_saved(place.connect().load(at(step)), step)


@pytest.mark.parametrize("compression", ["none", "zstd", "float"])
@pytest.mark.parametrize("victim", [0, 2])
def test_a_bit_that_flips_in_one_file_of_a_chain_costs_no_checkpoint(tmp_path: Path, compression: str, victim: int) -> None:
    """The first file is the one that all others refer to."""
    with compressing(tmp_path, nvme=compression) as (place, store):
        for step in STEPS:
            save(store, at(step), step).wait("pfs", timeout_s=60)
        check_all(place)
        flip(part_of(place, "nvme", victim))
        store = place.connect()
        for step in STEPS:
            assert_saved(store.load(at(step)), step)
        until("it is mended", lambda: verified(store) == [])
        check_all(place)


def test_where_no_good_copy_of_what_is_referred_to_is_left_each_load_says_so_and_those_before_it_are_whole(tmp_path: Path) -> None:
    with compressing(tmp_path, pfs="none", nvme="none") as (place, store):
        for step in STEPS:
            save(store, at(step), step).wait("pfs", timeout_s=60)
        check_all(place)
        for tier in BOTH:
            flip(part_of(place, tier, 2))
        store = place.connect()
        for step in (0, 1, 3):  # nothing refers to the file of the third: what it wrote the next one changed
            assert_saved(store.load(at(step)), step)
        with pytest.raises(ChecksumMismatch, match="step-2"):
            store.load(at(2))


def part_of(place: FaultStore, tier: str, step: int) -> Path:
    return next(file for file in objects_below(place.root(tier)) if f"step-{step}/" in str(file) and "rank-" in file.name)


def flip(file: Path) -> None:
    """A bit in the last third, where the tensors are."""
    data = bytearray(file.read_bytes())
    data[len(data) * 2 // 3] ^= 4
    copy: Any = file.with_name("flipped")  # the daemon may have the file mapped
    copy.write_bytes(data)
    shutil.copymode(file, copy)
    copy.replace(file)
