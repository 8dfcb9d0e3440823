"""A job that is about to be ended, and its daemon goes away: one that comes back within the grace time is waited for, no other one is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ckptstore.errors import CkptStoreError
from ckptstore_client import Store, connect
from ckptstore_client.preemption import Kept
from tests.daemon_process import DaemonProcess, write_config


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    tiers = [
        {"name": "nvme", "kind": "posix", "path": tmp_path / "nvme"},
        {"name": "pfs", "kind": "posix", "path": tmp_path / "pfs", "shared": True, "bandwidth_limit": "1MB/s"},
    ]
    write_config(tmp_path / "home", tiers=tiers)
    with DaemonProcess(tmp_path / "home") as process:
        yield process


@pytest.fixture
def store(daemon: DaemonProcess) -> Iterator[Store]:
    with connect(home=daemon.home, start=False) as store:
        yield store


def last_snapshot(store: Store, grace_s: float, then: Callable[[], object]) -> Kept:
    """Of a job that has a notice; `then` is called when its checkpoint is in nvme, before the job waits for pfs."""
    with store.preemption("/run", signals=(), grace_s=grace_s) as notice:
        notice.preempt("the machine is taken away")
        assert notice.wanted(1)
        store.save("/run/1", {"x": np.zeros(500_000)}, rank=0, world_size=1).wait("nvme", timeout_s=60)
        then()
    assert notice.kept is not None
    return notice.kept


def test_a_daemon_that_is_started_again_within_the_grace_time_is_waited_for(
    daemon: DaemonProcess, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 MB into a tier of 1 MB/s: it is not there yet when the daemon dies, which it does before the job asks for the first time."""
    missed = threading.Event()
    open_transport = store._connection._open

    def noticing() -> object:
        try:
            return open_transport()
        except CkptStoreError:
            missed.set()
            raise

    def restart() -> None:
        assert missed.wait(60)
        daemon.start(wait=False)

    monkeypatch.setattr(store._connection, "_open", noticing)
    restarting = threading.Thread(target=restart)
    restarting.start()
    kept = last_snapshot(store, 120, daemon.kill)
    restarting.join()
    assert (kept.path, kept.reached, kept.why) == ("/run/1", True, "")
    assert "pfs" in kept.durability


def test_a_daemon_that_hangs_costs_no_more_than_the_grace_time(daemon: DaemonProcess, store: Store) -> None:
    kept = last_snapshot(store, 1, lambda: os.kill(daemon.pid, signal.SIGSTOP))
    assert (kept.path, kept.reached, kept.durability) == ("/run/1", False, ())
    assert "did not answer in time" in kept.why
    os.kill(daemon.pid, signal.SIGCONT)


def test_a_daemon_that_never_comes_back_is_given_up_when_the_time_is_over(daemon: DaemonProcess, store: Store) -> None:
    kept = last_snapshot(store, 1, daemon.kill)
    assert (kept.path, kept.reached) == ("/run/1", False)
    assert "nobody answers" in kept.why
