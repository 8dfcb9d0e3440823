"""A disk is full, broken or read-only, memory is short, the catalog is locked: saves wait or are refused as chosen, and nothing dies of it.

Small real file systems, mounted for each test, stand for the disks: a tmpfs that is full or read-only, an ext4 on a loop device whose
backing file loses its end. When the cause goes, everything goes on by itself.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ckptstore.errors import Busy, CatalogUnavailable, InvalidInput, TierFull
from tests.faults.fault_store import (
    FaultStore,
    assert_state,
    objects_below,
    posix_tier,
    process_ends,
    published,
    state_of,
    tier_status,
    verified,
)
from tests.faults.small_disks import MIB, Disk, disks, run, started
from tests.until import until

__all__ = ["disks"]

#: How long another process holds the catalog's lock, in seconds: a slow backup.
LOCKED_FOR_S = 3.0
REPOSITORY = Path(__file__).parents[2]


@contextmanager
def trainer(place: FaultStore, run: str, on_busy: str, size_bytes: int) -> Iterator[Trainer]:
    command = [sys.executable, "-m", "tests.faults.save_loop", str(place.home), run, on_busy, str(size_bytes)]
    environment = {**os.environ, "PYTHONPATH": ":".join(str(REPOSITORY / part) for part in (".", "tiers", "client", "server", "bench"))}
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process_ends(process):
        yield Trainer(process)


class Trainer:
    """`save_loop` as its test sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def next_save(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            raise AssertionError(f"the trainer died: {self._process.stderr.read()[-2000:]}")
        saved: dict[str, Any] = json.loads(line)
        return saved

    def saves_until(self, wanted: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        until("the trainer saw it", lambda: found.append(self.next_save()) or wanted(found[-1]))
        return found

    def end(self) -> list[dict[str, Any]]:
        """Ask it to stop; what it had still saved. Its exit code must be 0."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.close()
        # From the stream that `next_save` reads, to its end: `communicate` would pass over the lines that are read ahead already.
        out, err = process.stdout.read(), process.stderr.read()
        assert process.wait(timeout=60) == 0, err[-2000:]
        return [json.loads(line) for line in out.splitlines()]


# --- full ----------------------------------------------------------------------------------------------------------------------------


def test_a_full_nvme_is_passed_over_shown_and_filled_later(tmp_path: Path, disks: tuple[Disk, Disk]) -> None:
    nvme, pfs = disks
    with started(tmp_path, nvme, pfs) as (place, store):
        nvme.fill()
        pending = store.save("/run/a", state_of(1))
        pending.wait("pfs", timeout_s=60)
        assert pending.durability == ["pfs"]
        shown = until("the tier is called full", lambda: (now := tier_status(store.status(), "nvme")).state == "full" and now)
        assert "No space left" in (shown.last_error or "")
        assert shown.waiting_objects == 2
        assert_state(store.load("/run/a"), 1)
        nvme.empty()
        until("the nearer tier has it, too", lambda: pending.durability == ["nvme", "pfs"])
        assert tier_status(store.status(), "nvme").state == "ok"
        assert verified(store) == []
        assert len(objects_below(place.root("nvme"))) == 2


def test_a_full_parallel_file_system_delays_the_drain_and_nothing_else(tmp_path: Path, disks: tuple[Disk, Disk]) -> None:
    nvme, pfs = disks
    with started(tmp_path, nvme, pfs) as (_, store):
        pfs.fill()
        pending = store.save("/run/a", state_of(1))
        pending.wait("nvme", timeout_s=60)
        shown = until("the tier is called full", lambda: (now := tier_status(store.status(), "pfs")).state == "full" and now)
        assert (shown.waiting_objects, pending.durability) == (2, ["nvme"])
        pfs.empty()
        pending.wait("pfs", timeout_s=60)
        assert tier_status(store.status(), "pfs").state == "ok"


def test_with_every_disk_full_a_waiting_trainer_waits_and_goes_on(tmp_path: Path, disks: tuple[Disk, Disk]) -> None:
    nvme, pfs = disks
    with started(tmp_path, nvme, pfs) as (place, store), trainer(place, "/run", "wait", MIB) as training:
        training.saves_until(lambda saved: saved["step"] >= 2)
        nvme.fill()
        pfs.fill()
        until("saves wait", lambda: any(line.stored < line.snapshots for line in store.status().attempts))
        states = until("both are full", lambda: [t.state for t in store.status().tiers] == ["full", "full"])
        assert states
        nvme.empty()
        pfs.empty()
        went_on = training.next_save()["step"] + 3
        last = (training.saves_until(lambda saved: saved["step"] >= went_on) + training.end())[-1]
        newest = f"/run/step-{last['step']:04}"
        until("all of it is published", lambda: not store.status().attempts)
        store.wait(newest, "pfs", timeout_s=60)
        assert [entry.path for entry in store.ls("/run")] == [f"/run/step-{step:04}" for step in range(last["step"] + 1)]
        assert_state(store.load(newest), last["step"])
        assert verified(store) == []


def test_with_every_disk_full_a_trainer_that_skips_is_never_held_up(tmp_path: Path, disks: tuple[Disk, Disk]) -> None:
    nvme, pfs = disks
    with started(tmp_path, nvme, pfs) as (place, store), trainer(place, "/run", "skip", MIB) as training:
        training.saves_until(lambda saved: not saved["skipped"])
        nvme.fill()
        pfs.fill()
        skips = training.saves_until(lambda saved: saved["skipped"])
        skips += [training.next_save() for _ in range(5)]
        nvme.empty()
        pfs.empty()
        again = training.saves_until(lambda saved: not saved["skipped"])[-1]
        training.end()
        until("all of it is published", lambda: not store.status().attempts)
        store.wait(f"/run/step-{again['step']:04}", "nvme", timeout_s=60)
        assert_state(store.load(f"/run/step-{again['step']:04}"), again["step"])
        assert verified(store) == []


def test_with_every_slot_taken_fail_raises_busy_and_the_held_saves_survive(tmp_path: Path, disks: tuple[Disk, Disk]) -> None:
    nvme, pfs = disks
    with started(tmp_path, nvme, pfs) as (_, store):
        nvme.fill()
        pfs.fill()
        held = [store.save(f"/run/{n}", state_of(n), on_busy="fail") for n in range(2)]
        with pytest.raises(Busy):
            store.save("/run/2", state_of(2), on_busy="fail")
        assert store.save("/run/3", state_of(3), on_busy="skip").skipped
        nvme.empty()
        pfs.empty()
        for n, pending in enumerate(held):
            pending.wait("pfs", timeout_s=60)
            assert_state(store.load(f"/run/{n}"), n)
        assert [entry.name for entry in store.ls("/run")] == ["0", "1"]


def test_a_long_run_never_fills_a_small_nvme_and_every_checkpoint_stays_loadable(tmp_path: Path, disks: tuple[Disk, Disk]) -> None:
    """Three times the disk's size passes through it. What a drain had to wait for is counted as full, never as lost."""
    nvme, pfs = disks
    marks = {"high_water": 0.6, "low_water": 0.4}
    with started(tmp_path, nvme, pfs, nvme=marks) as (_, store):
        for step in range(36):
            store.save(f"/run/{step:02}", state_of(step, size_bytes=2 * MIB), step=step).wait("nvme", timeout_s=60)
            assert nvme.free_bytes > MIB, f"after step {step}"
        until("the disk is below its mark", lambda: nvme.free_bytes > 0.4 * nvme.size_bytes)
        assert not any("No space left" in line.what for line in store.status().errors)
        for step in range(36):
            assert_state(store.load(f"/run/{step:02}"), step, size_bytes=2 * MIB)
        assert verified(store) == []


def test_with_the_deeper_tier_down_nothing_that_is_not_drained_is_evicted(tmp_path: Path, disks: tuple[Disk, Disk]) -> None:
    nvme, pfs = disks
    with started(tmp_path, nvme, pfs, nvme={"high_water": 0.3, "low_water": 0.1}) as (place, store):
        pfs.make("ro")
        for step in range(4):
            store.save(f"/run/{step}", state_of(step, size_bytes=4 * MIB), step=step).wait("nvme", timeout_s=60)
        until("the tier below is called down", lambda: tier_status(store.status(), "pfs").state == "down")
        waiting = store.save("/run/4", state_of(4, size_bytes=8 * MIB))
        until("the disk is full", lambda: tier_status(store.status(), "nvme").state == "full")
        assert len(objects_below(place.root("nvme"))) == 8
        for step in range(4):
            assert_state(store.load(f"/run/{step}"), step, size_bytes=4 * MIB)
        pfs.make("rw")
        waiting.wait("pfs", timeout_s=90)
        assert_state(store.load("/run/4"), 4, size_bytes=8 * MIB)
        until("what is safe below makes room", lambda: nvme.free_bytes > 0.7 * nvme.size_bytes)
        assert verified(store) == []


# --- read-only, and broken -----------------------------------------------------------------------------------------------------------


def test_a_read_only_disk_is_named_passed_over_and_used_again(tmp_path: Path, disks: tuple[Disk, Disk]) -> None:
    nvme, pfs = disks
    with started(tmp_path, nvme, pfs) as (place, store), trainer(place, "/run", "wait", MIB) as training:
        training.saves_until(lambda saved: saved["step"] >= 1)
        nvme.make("ro")
        shown = until("the tier is called down", lambda: (now := tier_status(store.status(), "nvme")).state == "down" and now)
        assert "read-only" in (shown.last_error or "").lower()
        beside = training.next_save()["step"] + 2
        last = (training.saves_until(lambda saved: saved["step"] >= beside) + training.end())[-1]
        newest = f"/run/step-{last['step']:04}"
        until("all of it is published", lambda: not store.status().attempts)
        store.wait(newest, "pfs", timeout_s=60)
        nvme.make("rw")
        until("the nearer tier has it, too", lambda: store.stat(newest).durability == ["nvme", "pfs"])
        assert tier_status(store.status(), "nvme").state == "ok"
        assert verified(store) == []


@pytest.mark.parametrize("call", ["write", "fsync", "fallocate", "publish", "fsync_folder", "create"])
def test_an_io_error_of_one_tier_costs_a_try_and_no_checkpoint(tmp_path: Path, call: str) -> None:
    tiers = [posix_tier("nvme", tmp_path / "nvme"), posix_tier("pfs", tmp_path / "pfs", shared=True)]
    with FaultStore(tmp_path / "home", tiers) as place:
        place.start("; ".join(f"posix.put.{call}=eio@{hit}" for hit in [12]))
        store = place.connect()
        for step in range(4):
            store.save(f"/run/{step}", state_of(step)).wait("pfs", timeout_s=60)
        for step in range(4):
            until("both tiers have it", lambda at=step: store.stat(f"/run/{at}").durability == ["nvme", "pfs"])  # type: ignore[misc]
            assert_state(store.load(f"/run/{step}"), step)
        assert [tier.state for tier in store.status().tiers] == ["ok", "ok"]
        # After a failed fsync the file is written anew, within the same put: nobody has to be told.
        assert call == "fsync" or any("Input/output error" in line.what for line in store.status().errors)
        assert verified(store) == []


# --- memory and catalog --------------------------------------------------------------------------------------------------------------


def test_a_state_that_memory_can_never_hold_is_refused_at_once_whatever_on_busy_says(tmp_path: Path, disks: tuple[Disk, Disk]) -> None:
    with started(tmp_path, *disks, memory={"limit": "8MiB"}) as (_, store):
        for on_busy in ("wait", "skip", "fail"):
            with pytest.raises((TierFull, InvalidInput), match=r"8388608|limit"):
                store.save("/run/large", state_of(1, size_bytes=16 * MIB), on_busy=on_busy)  # type: ignore[arg-type]
        store.save("/run/small", state_of(2)).wait("nvme", timeout_s=60)
        assert [entry.name for entry in store.ls("/run")] == ["small"]


def test_the_memory_limit_holds_and_a_second_client_waits_its_turn(tmp_path: Path, disks: tuple[Disk, Disk]) -> None:
    nvme, pfs = disks
    with started(tmp_path, nvme, pfs, memory={"limit": "6MiB"}) as (place, store):
        nvme.fill()
        pfs.fill()
        held = store.save("/run/held", state_of(1, size_bytes=3 * MIB))
        other = place.connect()
        with pytest.raises(Busy):
            other.save("/run/refused", state_of(2, size_bytes=3 * MIB), on_busy="fail")
        assert other.save("/run/skipped", state_of(2, size_bytes=3 * MIB), on_busy="skip").skipped
        memory = store.status().memory
        assert memory.lent_bytes + memory.held_bytes + memory.replica_bytes + memory.free_bytes <= memory.limit_bytes
        nvme.empty()
        pfs.empty()
        waited = other.save("/run/waited", state_of(3, size_bytes=3 * MIB), on_busy="wait")
        for pending in (held, waited):
            pending.wait("pfs", timeout_s=60)
        assert [entry.name for entry in store.ls("/run")] == ["held", "waited"]


@contextmanager
def locked(place: FaultStore) -> Iterator[None]:
    """Another process's write transaction on the catalog: SQLite's lock is the same from here."""
    connection = sqlite3.connect(place.home / "catalog.sqlite3", isolation_level=None, timeout=30.0)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
    finally:
        connection.rollback()
        connection.close()


def test_a_catalog_that_is_locked_for_a_while_only_delays(tmp_path: Path, disks: tuple[Disk, Disk]) -> None:
    with started(tmp_path, *disks) as (place, store), trainer(place, "/run", "wait", MIB) as training:
        training.saves_until(lambda saved: saved["step"] >= 1)
        until("the first is published", lambda: published(store, "/run/step-0000"))
        with locked(place):
            assert store.hello().tiers == ["nvme", "pfs"]
            assert_state(store.load("/run/step-0000"), 0)
            time.sleep(LOCKED_FOR_S)  # nothing is waited for: this is how long the fault lasts
        slow = training.saves_until(lambda saved: saved["took_s"] > LOCKED_FOR_S / 2)
        last = (slow + training.saves_until(lambda saved: saved["step"] > slow[-1]["step"] + 1) + training.end())[-1]
        until("all of it is published", lambda: not store.status().attempts)
        store.wait(f"/run/step-{last['step']:04}", "pfs", timeout_s=60)
        assert verified(store) == []


def test_a_catalog_that_stays_locked_is_named_and_training_does_not_die_of_it(tmp_path: Path, disks: tuple[Disk, Disk]) -> None:
    """Longer than the daemon's patience: `fail` gives an error, `skip` skips, `wait` waits; what was handed over is not lost."""
    with (
        started(tmp_path, *disks) as (place, store),
        trainer(place, "/wait", "wait", MIB) as waiting,
        trainer(place, "/skip", "skip", MIB) as skipping,
    ):
        for one in (waiting, skipping):
            one.saves_until(lambda saved: not saved["skipped"])
        with locked(place):
            with pytest.raises(CatalogUnavailable, match="the catalog has not opened the attempt"):
                store.save("/run/a", state_of(1), on_busy="fail")
            skipping.saves_until(lambda saved: saved["skipped"])
        for one in (waiting, skipping):
            one.saves_until(lambda saved: saved["took_s"] > 5 or not saved["skipped"])
            one.saves_until(lambda saved: not saved["skipped"])
            one.end()
        until("nothing is half done", lambda: not store.status().attempts)
        for run in ("/wait", "/skip"):
            for entry in store.ls(run):
                store.wait(entry.path, "pfs", timeout_s=60)
                assert entry.step is not None
                assert_state(store.load(entry.path), entry.step)
        store.save("/run/a", state_of(1), on_busy="fail").wait("pfs", timeout_s=60)
        assert verified(store) == []


def test_a_disk_that_cannot_be_read_any_more_is_passed_over(tmp_path: Path) -> None:
    """An ext4 whose device has lost what lies behind the file system's own tables: the kernel answers reads with EIO.

    The client reads the file itself, through the daemon's descriptor; the daemon reads it for `verify` and for streams.
    """
    image, mount = tmp_path / "image", tmp_path / "nvme"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    run("mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", str(image))
    mount.mkdir()
    run("mount", "-o", f"loop,errors=continue,offset=0,sizelimit={64 * MIB}", str(image), str(mount))
    try:
        tiers = [posix_tier("nvme", mount / "root"), posix_tier("pfs", tmp_path / "pfs", shared=True)]
        with FaultStore(tmp_path / "home", tiers) as place:
            place.start()
            store = place.connect()
            store.save("/run/a", state_of(1, size_bytes=6 * MIB)).wait("pfs", timeout_s=60)
            until("both tiers have it", lambda: store.stat("/run/a").durability == ["nvme", "pfs"])
            place.daemon.kill()  # memory forgets it
            place.start()
            part = next(file for file in objects_below(place.root("nvme")) if "rank-" in file.name)
            lose_device_behind(image, part)
            with pytest.raises(OSError, match="Input/output error"), open(part, "rb", buffering=0) as broken:
                broken.read(8 * MIB)
            assert_state(store.load("/run/a"), 1, size_bytes=6 * MIB)
            (line,) = (line for line in store.verify("/run/a") if line.problem and "rank-" in line.path)
            assert (line.tier, line.repaired) == ("nvme", False)
            assert "Input/output error" in (line.problem or "")
            store.save("/run/b", state_of(2)).wait("pfs", timeout_s=60)
            assert_state(store.load("/run/b"), 2)
    finally:
        run("umount", "-l", str(mount))


def lose_device_behind(image: Path, file: Path) -> None:
    """Cut the backing file of a loop device where `file` begins; nothing of it stays in the page cache."""
    os.sync()
    found = subprocess.run(["filefrag", "-v", "-b4096", str(file)], capture_output=True, text=True, check=True).stdout
    first_block = min(int(line.split(":")[2].split("..")[0]) for line in found.splitlines() if line.strip()[:1].isdigit())
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    os.truncate(image, first_block * 4096)
