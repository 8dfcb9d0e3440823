"""Several ranks, real processes, one checkpoint: it appears when the last has arrived, or never."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ckptstore
from ckptstore.errors import AttemptAborted, NotFound
from ckptstore_client.store import Store
from tests.daemon_process import DaemonProcess, write_config
from tests.e2e.job import Job

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


def published(store: Store, path: str) -> bool:
    try:
        return bool(store.stat(path))
    except NotFound:
        return False


def objects_below(home: Path, path: str) -> list[str]:
    folder = home / "nvme" / "objects" / path.lstrip("/")
    return [str(file) for file in folder.rglob("*") if file.is_file()]


def until_no_objects(home: Path, path: str) -> None:
    deadline = time.monotonic() + 60
    while left := objects_below(home, path):
        assert time.monotonic() < deadline, f"the space of an aborted attempt was not freed: {left}"
        time.sleep(0.05)


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


@pytest.mark.parametrize("moment", ["in-copy", "before-save"])
def test_a_rank_killed_before_it_hands_over_leaves_the_checkpoint_invisible_for_ever(daemon: DaemonProcess, store: Store, moment: str) -> None:
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
    deadline = time.monotonic() + 60
    while not published(store, "/four/dead"):
        assert time.monotonic() < deadline, "the daemon did not publish what it had been handed"
        time.sleep(0.02)
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


def test_a_skip_of_one_rank_aborts_the_attempt_for_all(tmp_path: Path) -> None:
    """With room for one slot a client, a rank whose last save is still being written skips; every rank's wait says so."""
    home = tmp_path / "home"
    write_config(home, tiers=[{"name": "nvme", "kind": "posix", "path": home / "nvme"}], memory={"limit": 64 << 20, "slots": 1})
    with DaemonProcess(home), ckptstore.connect(home=home, start=False, group="skipping-ranks") as one:
        with ckptstore.connect(home=home, start=False, group="skipping-ranks") as other:
            state = {"x": torch.arange(1000)}
            held = one.save("/skip/held", state, rank=0, world_size=2)  # rank 1 is late, so the slot of rank 0 may be in use
            first = one.save("/skip/a", state, rank=0, world_size=2, on_busy="wait")
            assert not held.skipped and not first.skipped
            other_state = {"x": torch.zeros(20 << 20, dtype=torch.uint8)}
            pendings = [other.save(f"/skip/{name}", other_state, rank=1, world_size=2, on_busy="skip") for name in ("held", "a")]
            skipped = [pending for pending in pendings if pending.skipped]
            for pending in skipped:
                with pytest.raises(AttemptAborted, match="rank 1 skipped"):
                    pending.wait("nvme", timeout_s=30)
            for pending, mine in zip(pendings, (held, first), strict=True):
                if pending.skipped:
                    with pytest.raises(AttemptAborted, match="rank 1 skipped"):
                        mine.wait("nvme", timeout_s=30)
                else:
                    mine.wait("nvme", timeout_s=30)
