"""A tier that is slower than its deadline says so to the operator, at every door, and is silent again when it has caught up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore
from ckptstore.errors import WaitTimeout
from ckptstore.wire import DrainAlarm
from ckptstore_client import Store
from tests.daemon_process import write_config
from tests.e2e.shell import Shell
from tests.faults.forked_daemon import ForkedDaemon
from tests.until import until

MIB = 1 << 20


SLOW = {"bandwidth_limit": "256KiB/s", "drain_within": "3s"}


def configure(folder: Path, pfs: dict[str, Any]) -> Path:
    tiers = [
        {"name": "nvme", "kind": "posix", "path": folder / "nvme"},
        {"name": "pfs", "kind": "posix", "path": folder / "pfs", "shared": True, **pfs},
    ]
    write_config(folder / "home", tiers=tiers, grace_s=0, memory={"limit": "256MiB"})
    return folder / "home"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ForkedDaemon]:
    """Its second tier takes a quarter of a MiB a second after its first four, and has three seconds for each checkpoint."""
    with ForkedDaemon(configure(tmp_path, SLOW)) as daemon:
        yield daemon


def alarm(store: Store) -> DrainAlarm | None:
    return next(tier.alarm for tier in store.status().tiers if tier.name == "pfs")


def save(store: Store, path: str, size_bytes: int) -> ckptstore.PendingCheckpoint:
    return store.save(path, {"w": np.zeros(size_bytes, np.uint8)})


def test_a_tier_that_cannot_be_in_time_raises_an_alarm_until_it_has_caught_up(daemon: ForkedDaemon, tmp_path: Path) -> None:
    store, shell = ckptstore.connect(home=daemon.home, start=False), Shell(daemon.home)
    save(store, "/large", 100 * MIB).wait("nvme", timeout_s=60)
    foreseen = until("the limit is seen to be too low", lambda: alarm(store))
    assert foreseen.kind in ("at risk", "late")
    late = until("the deadline is missed", lambda: (found := alarm(store)) and found.kind == "late" and found)
    assert late.late_s > 0
    assert "late by" in late.what

    screen = shell("status", "--check")
    assert screen.code == WaitTimeout.exit_code
    assert "DRAIN LATE" in screen.out
    assert "late by" in screen.err
    with daemon.http() as http:
        assert 'ckptstore_tier_drain_alarm{tier="pfs"} 2.0' in http.get("/metrics").text

    assert any("late by" in error.what for error in store.status().errors)

    daemon.stop()  # the operator raises the limit
    configure(tmp_path, SLOW | {"bandwidth_limit": "1GB/s"})
    daemon.start()
    store.wait("/large", "pfs", timeout_s=60)
    until("the alarm is over", lambda: alarm(store) is None)
    assert "serving" in shell.ok("status", "--check").out


def test_a_tier_that_keeps_its_deadline_raises_none(tmp_path: Path) -> None:
    """Two MiB in a minute are an eighth of what it may write."""
    with ForkedDaemon(configure(tmp_path, SLOW | {"drain_within": "60s"})) as daemon:
        store = ckptstore.connect(home=daemon.home, start=False)
        seen = []
        save(store, "/small", 2 * MIB).wait("nvme", timeout_s=60)
        until("it is there", lambda: seen.append(alarm(store)) or "pfs" in store.stat("/small").durability)
        assert seen == [None] * len(seen)


def test_removing_what_is_being_drained_ends_its_drain(daemon: ForkedDaemon) -> None:
    """A deletion, and a stop, would wait for a minute if they waited for the copy."""
    store = ckptstore.connect(home=daemon.home, start=False)
    save(store, "/large", 100 * MIB).wait("nvme", timeout_s=60)
    pfs = daemon.home.parent / "pfs"
    until("the copy has begun", lambda: list((pfs / "tmp").iterdir()) if (pfs / "tmp").exists() else [])
    store.rm("/large")
    left = [f"{folder}/**/*" for folder in ("objects", "records", "tombstones", "tmp")]
    until("nothing of it is left", lambda: not [file for part in left for file in pfs.glob(part) if file.is_file()], timeout_s=20)
    assert not store.status().tiers[1].waiting_objects


def test_a_daemon_that_stops_does_not_wait_for_a_slow_copy(tmp_path: Path, daemon: ForkedDaemon) -> None:
    store = ckptstore.connect(home=daemon.home, start=False)
    save(store, "/large", 100 * MIB).wait("nvme", timeout_s=60)
    until("the copy has begun", lambda: any(tier.waiting_objects for tier in store.status().tiers))
    Shell(daemon.home).ok("stop", "--timeout", "20")
    objects = [file for file in (tmp_path / "pfs" / "objects").rglob("*~*") if not file.name.startswith("checkpoint.json")]
    assert not objects, "what was not whole is not there"
