"""Starting, stopping and starting again: what a daemon does about another one, alive or dead, and about what it holds when told to stop.

These daemons are started as users start them, by `python -m ckptstore_server`.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import ckptstore
from ckptstore.config import read_settings
from ckptstore.errors import AlreadyRunning, AttemptAborted, Busy, CkptStoreError, ConfigInvalid, WaitTimeout
from ckptstore_client.store import Store
from tests.daemon_process import DaemonProcess, write_config
from tests.faults.crash_story import until

STATE = {"weights": np.arange(200_000, dtype=np.int32), "step": 7}
TIMEOUT_S = 60.0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    tiers = [
        {"name": "nvme", "kind": "posix", "path": tmp_path / "nvme"},
        {"name": "pfs", "kind": "posix", "path": tmp_path / "pfs", "shared": True},
    ]
    write_config(home, tiers=tiers, memory={"limit": "64MiB"})
    return home


@pytest.fixture
def daemon(home: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(home) as daemon:
        yield daemon


def store_of(home: Path) -> Store:
    return ckptstore.connect(home=home, start=False, timeout_s=TIMEOUT_S)


def assert_loads(store: Store, path: str) -> None:
    state = store.load(path)
    assert state["step"] == 7
    assert np.array_equal(state["weights"], STATE["weights"])


def log_of_refused(home: Path, why: type[CkptStoreError]) -> str:
    """What a daemon said that did not start, for this reason."""
    process = DaemonProcess(home).start(wait=False)
    try:
        assert process.wait_exit(TIMEOUT_S) == why.exit_code
    finally:
        process.kill()
    return process.log()


def test_a_second_daemon_on_the_same_home_refuses_by_name_and_harms_nothing(home: Path, daemon: DaemonProcess) -> None:
    assert f"another daemon (pid {daemon.pid}) serves this home" in log_of_refused(home, AlreadyRunning)
    with store_of(home) as store:
        store.save("/run/one", STATE).wait("nvme", timeout_s=TIMEOUT_S)
        assert_loads(store, "/run/one")


def test_the_socket_files_of_a_dead_daemon_are_no_obstacle(home: Path, daemon: DaemonProcess) -> None:
    with store_of(home) as store:
        store.save("/run/one", STATE).wait("nvme", timeout_s=TIMEOUT_S)
    daemon.kill()
    settings = read_settings(home / "config.toml", home=home)
    assert settings.api_socket.is_socket() and settings.fd_socket.is_socket()
    with DaemonProcess(home), store_of(home) as store:
        assert_loads(store, "/run/one")


@pytest.mark.parametrize("socket", ["api_socket", "fd_socket"])
def test_what_lies_in_the_place_of_a_socket_and_is_none_is_named_and_left(home: Path, socket: str) -> None:
    place: Path = getattr(read_settings(home / "config.toml", home=home), socket)
    place.write_text("somebody's", "utf-8")
    assert f"{place}: something that is no socket is in its place" in log_of_refused(home, ConfigInvalid)
    assert place.read_text("utf-8") == "somebody's"


def test_a_stop_stores_what_was_handed_over_and_the_next_daemon_drains_it(home: Path, daemon: DaemonProcess) -> None:
    assert daemon.stop() == 0  # it has claimed the tiers' roots: what the next one writes first is the save
    # In the first round no tier takes the bytes, so that they are still in memory alone when the daemon is told to stop.
    with DaemonProcess(home, failpoints="posix.put.create=enospc@1; posix.put.fallocate=enospc@1") as slow:
        with store_of(home) as store:
            pending = store.save("/run/one", STATE, rank=0, world_size=1)
            pending.wait("snapshot", timeout_s=TIMEOUT_S)
        assert slow.stop() == 0, slow.log()
    with DaemonProcess(home), store_of(home) as store:
        assert_loads(store, "/run/one")
        store.wait("/run/one", "pfs", timeout_s=TIMEOUT_S)


def test_a_stopping_daemon_takes_no_new_saves_but_waiters_hear_the_end(home: Path, daemon: DaemonProcess) -> None:
    with store_of(home) as store:
        store.save("/run/one", STATE).wait("nvme", timeout_s=TIMEOUT_S)
        assert daemon.stop() == 0, daemon.log()
        with pytest.raises(CkptStoreError) as caught:
            store.save("/run/two", STATE, on_busy="fail")
    assert caught.value.retryable, "a trainer may try again when the daemon is back"
    assert isinstance(caught.value, Busy) or caught.value.code == "daemon_unavailable"


def test_ranks_that_were_stored_before_a_restart_are_completed_after_it(home: Path, daemon: DaemonProcess) -> None:
    first, second = (ckptstore.connect(home=home, start=False, timeout_s=TIMEOUT_S, group="job 1") for _ in range(2))
    with first, second:
        pending = first.save("/run/both", STATE, rank=0, world_size=2)
        until(lambda: rank_states(home) == ["stored"], "rank 0 was not stored")
        daemon.kill()
        with DaemonProcess(home):
            assert isinstance(waited(pending), WaitTimeout), "its bytes are on the disk: a restart is no reason to give them up"
            second.save("/run/both", STATE, rank=1, world_size=2)
            pending.wait("nvme", timeout_s=TIMEOUT_S)
            for rank in (0, 1):
                assert np.array_equal(first.load("/run/both", rank=rank)["weights"], STATE["weights"])


def rank_states(home: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{home / 'catalog.sqlite3'}?mode=ro", uri=True)) as catalog:
        return [state for (state,) in catalog.execute("SELECT state FROM ranks")]


def waited(pending: ckptstore.PendingCheckpoint) -> CkptStoreError | None:
    try:
        pending.wait("nvme", timeout_s=2.0)
    except CkptStoreError as error:
        return error
    return None


def test_an_attempt_whose_bytes_were_in_memory_alone_is_aborted_by_the_restart(home: Path, daemon: DaemonProcess) -> None:
    daemon.kill()
    outcomes: list[CkptStoreError | None] = []
    with DaemonProcess(home, failpoints="ingest.before_catalog=kill") as dying, store_of(home) as store:
        pending = store.save("/run/lost", STATE, rank=0, world_size=1)
        dying.wait_exit(TIMEOUT_S)
        with DaemonProcess(home):
            waiter = threading.Thread(target=lambda: outcomes.append(waited(pending)))
            waiter.start()
            waiter.join(TIMEOUT_S)
            (outcome,) = outcomes
            assert isinstance(outcome, AttemptAborted)
            assert "the daemon that held its snapshot was restarted" in str(outcome)
            assert list(store.ls("/")) == []
            store.save("/run/lost", STATE).wait("nvme", timeout_s=TIMEOUT_S)  # and the next one works
            assert_loads(store, "/run/lost")
