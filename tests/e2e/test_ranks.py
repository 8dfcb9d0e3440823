"""Several ranks, real processes, one checkpoint: it appears when the last has arrived, or never."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptstore
from ckptstore.errors import AttemptAborted, NotFound
from ckptstore_client.staging import BoundState
from ckptstore_client.store import Store
from tests.daemon_process import DaemonProcess, write_config
from tests.e2e.job import Job
from tests.faults.fault_store import published
from tests.files import files_below
from tests.until import until

RANKS = range(4)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    home = tmp_path_factory.mktemp("ranks")
    write_config(home, tiers=[{"name": "nvme", "kind": "posix", "path": home / "nvme"}], grace_s=0, attempt_timeout_s=6)
    with DaemonProcess(home) as process:
        yield process


@pytest.fixture
def store(daemon: DaemonProcess) -> Iterator[Store]:
    with ckptstore.connect(home=daemon.home, start=False) as connected:
        yield connected


def check(store: Store, path: str, value: int) -> None:
    """Every rank's part is there, and all are of one incarnation."""
    for rank in RANKS:
        part = store.load(path, rank=rank)
        assert part["rank"] == rank and part["model"]["rank"].tolist() == [rank]
        assert part["value"] == value and torch.equal(part["model"]["w"], torch.full((257, 33), float(value)))


def objects_below(home: Path, path: str) -> list[str]:
    folder = home / "nvme" / "objects" / path.lstrip("/")
    return [str(file) for file in files_below(folder)]


def until_no_objects(home: Path, path: str) -> None:
    until("the space of an aborted attempt is freed", lambda: not objects_below(home, path))


def test_a_checkpoint_is_invisible_until_its_last_rank_arrives(daemon: DaemonProcess, store: Store, tmp_path: Path) -> None:
    go = tmp_path / "go"
    late = ["--go", str(go)]
    with Job(daemon.home, "/four/a", 1, [[], [], [], late]) as job:
        job.expect("saved", [0, 1, 2])
        with pytest.raises(NotFound):
            store.stat("/four/a")
        with pytest.raises(NotFound):
            store.load("/four/a", rank=0)
        go.touch()
        job.expect("durable", RANKS)
        check(store, "/four/a", 1)
        assert store.stat("/four/a").world_size == 4


@pytest.mark.parametrize("moment", ["before-hand-over", "before-save"])
def test_a_rank_killed_before_it_hands_over_leaves_the_checkpoint_invisible_for_ever(
    daemon: DaemonProcess, store: Store, moment: str
) -> None:
    path = f"/four/killed-{moment}"
    with Job(daemon.home, path, 2, [[], [], [], ["--die", moment]]) as job:
        errors = job.expect("error", [0, 1, 2])
        assert {error["code"] for error in errors} == {"attempt_aborted"}
    with pytest.raises(NotFound):
        store.stat(path)
    until_no_objects(daemon.home, path)
    with Job(daemon.home, path, 3, [[], [], [], []]) as job:
        job.expect("durable", RANKS)
    check(store, path, 3)


def test_ranks_killed_after_the_snapshot_leave_a_published_checkpoint(daemon: DaemonProcess, store: Store) -> None:
    die = ["--die", "after-snapshot"]
    with Job(daemon.home, "/four/dead", 4, [die, die, die, die]) as job:
        job.expect("snapshot", RANKS)
    until("the daemon publishes what it was handed", lambda: published(store, "/four/dead"))
    store.wait("/four/dead", "nvme", timeout_s=60)
    check(store, "/four/dead", 4)


def test_incarnations_of_a_job_never_mix_in_one_checkpoint(daemon: DaemonProcess, store: Store, tmp_path: Path) -> None:
    """The first incarnation dies with two of its ranks handed over; the second saves the same step again, in another order."""
    never = ["--go", str(tmp_path / "never")]
    with Job(daemon.home, "/four/twice", 5, [[], [], never, never]) as first:
        first.expect("saved", [0, 1])
        go = tmp_path / "go"
        with Job(daemon.home, "/four/twice", 6, [["--go", str(go)], [], [], []]) as second:
            second.expect("saved", [1, 2, 3])
            first.kill()
            go.touch()
            second.expect("durable", RANKS)
    check(store, "/four/twice", 6)


def test_one_ranks_failure_aborts_the_attempt_for_all_and_the_next_works(daemon: DaemonProcess, store: Store) -> None:
    """Four ranks save a path that exists: all are refused alike. Another path works right after, in the same processes."""
    with Job(daemon.home, "/four/b", 7, [["--repeat", "2"]] * 4) as job:
        job.expect("done", RANKS)
    with Job(daemon.home, "/four/b-0", 9, [[]] * 4) as again:
        errors = again.expect("error", RANKS)
        assert {error["code"] for error in errors} <= {"already_exists", "attempt_aborted"}
        assert any(error["code"] == "already_exists" for error in errors)
    check(store, "/four/b-0", 7)
    check(store, "/four/b-1", 8)


def test_a_skip_of_one_rank_aborts_the_attempt_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot is taken by a save that is still being copied: the next save skips, every wait says so, the one after works."""
    home = tmp_path / "home"
    write_config(home, tiers=[{"name": "nvme", "kind": "posix", "path": home / "nvme"}], memory={"limit": 64 << 20, "slots": 1})
    copying, go_on = threading.Event(), threading.Event()
    copy = BoundState.copy

    def held_copy(bound: BoundState, leaves: Any = None) -> None:
        if bound.staged.size_bytes > 1 << 20:
            copying.set()
            assert go_on.wait(60)
        copy(bound, leaves)

    monkeypatch.setattr(BoundState, "copy", held_copy)
    with (
        DaemonProcess(home),
        ckptstore.connect(home=home, start=False, group="skipping-ranks") as one,
        ckptstore.connect(home=home, start=False, group="skipping-ranks") as other,
        ThreadPoolExecutor(1) as thread,
    ):
        small, large = {"x": torch.arange(1000)}, {"x": torch.zeros(4 << 20, dtype=torch.uint8)}
        held = thread.submit(other.save, "/skip/held", large, rank=1, world_size=2)
        assert copying.wait(60)
        mine = one.save("/skip/a", small, rank=0, world_size=2)
        theirs = other.save("/skip/a", small, rank=1, world_size=2, on_busy="skip")
        assert theirs.skipped
        for pending in (mine, theirs):
            with pytest.raises(AttemptAborted, match="rank 1 skipped"):
                pending.wait("nvme", timeout_s=30)
        go_on.set()
        one.save("/skip/held", large, rank=0, world_size=2)
        held.result(60).wait("nvme", timeout_s=30)
        pendings = [client.save("/skip/a", small, rank=rank, world_size=2) for rank, client in enumerate((one, other))]
        for pending in pendings:
            pending.wait("nvme", timeout_s=30)
        assert torch.equal(one.load("/skip/a", rank=1)["x"], small["x"])
