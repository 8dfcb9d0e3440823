"""A job saves when it is asked to, and once more before it is ended: all ranks at one step, and it says truthfully where that got."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptstore.errors import InvalidInput, WaitTimeout
from ckptstore_client import Store, connect
from ckptstore_client.preemption import Preemption
from tests.daemon_process import DaemonProcess, write_config
from tests.e2e.job import Job
from tests.e2e.shell import Shell
from tests.until import until


class LoopJob(Job):
    program = Path(__file__).with_name("loop_program.py")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    tiers = [
        {"name": "nvme", "kind": "posix", "path": tmp_path / "nvme"},
        {"name": "pfs", "kind": "posix", "path": tmp_path / "pfs", "shared": True},
    ]
    write_config(tmp_path / "home", tiers=tiers)
    with DaemonProcess(tmp_path / "home") as process:
        yield process


@pytest.fixture
def store(daemon: DaemonProcess) -> Iterator[Store]:
    with connect(home=daemon.home, start=False) as store:
        yield store


def asked(notice: Preemption, step: int) -> int:
    """The first step from this one on at which the loop is to save."""

    def next_one() -> int:
        nonlocal step
        step += 1
        return step if notice.wanted(step) else 0

    return until("the loop is asked to save", next_one)


def save(store: Store, step: int) -> None:
    store.save(f"/run/step-{step}", {"step": np.full(1000, step)}, step=step, rank=0, world_size=1)


# --- several ranks -------------------------------------------------------------------------------------------------------------------


def test_a_signal_to_one_rank_is_a_last_snapshot_of_all_ranks_at_one_step(daemon: DaemonProcess, store: Store) -> None:
    with LoopJob(daemon.home, "/run", "job-1", [["0.002"], ["0.004"], ["0.01"]]) as job:
        job.expect("ready", [0, 1, 2])
        job.processes[1].send_signal(signal.SIGTERM)
        left = job.expect("left", [0, 1, 2])
        assert [process.wait(60) for process in job.processes] == [0, 0, 0]
    (step,) = {line["step"] for line in left}
    path = f"/run/step-{step:06}"
    for line in left:
        assert line["kept"]["path"] == path
        assert line["kept"]["reached"]
        assert "pfs" in line["kept"]["durability"]
    assert [entry.path for entry in store.ls("/run")] == [path]
    assert all(store.load(path, rank=rank)["step"][0] == step for rank in range(3))


def test_whoever_asks_gets_a_checkpoint_that_was_begun_afterwards_and_the_job_goes_on(daemon: DaemonProcess, store: Store) -> None:
    shell = Shell(daemon.home)
    with LoopJob(daemon.home, "/run", "job-1", [["0.001"], ["0.003"]]) as job:
        job.expect("ready", [0, 1])
        told: list[Any] = [shell.ok("snapshot", "/run", "--wait", "--timeout", "60", "--json").document]
        told.append(store.snapshot("/run", wait=True, timeout_s=60).model_dump())
        assert all(process.poll() is None for process in job.processes)
    assert [document["state"] for document in told] == ["answered", "answered"]
    assert told[0]["step"] < told[1]["step"]
    for document in told:
        assert document["checkpoint"] == f"/run/step-{document['step']:06}"
        assert [store.load(document["checkpoint"], rank=rank)["step"][0] for rank in (0, 1)] == [document["step"]] * 2


def test_a_rank_that_is_dead_costs_the_snapshot_and_leaves_no_half_of_one(daemon: DaemonProcess, store: Store) -> None:
    with LoopJob(daemon.home, "/run", "job-1", [["0.001"], ["0.001"]]) as job:
        job.expect("ready", [0, 1])
        job.processes[1].kill()
        job.processes[1].wait()
        with pytest.raises(WaitTimeout, match="1 ranks have heard"):
            store.snapshot("/run", wait=True, timeout_s=3)
        assert job.processes[0].poll() is None
    assert list(store.ls("/")) == []


# --- one rank ------------------------------------------------------------------------------------------------------------------------


def test_a_request_outlives_the_daemon_and_is_heeded_by_a_job_that_begins_later(daemon: DaemonProcess) -> None:
    shell = Shell(daemon.home)
    assert "no job has heard of it" in shell.ok("snapshot", "/run").out
    daemon.kill()
    daemon.start()
    with connect(home=daemon.home, start=False) as store:
        with store.preemption("/run", signals=()) as notice:
            save(store, asked(notice, 0))
            assert not notice.leaving
        assert notice.kept is None


def test_a_save_that_was_begun_before_does_not_answer(store: Store) -> None:
    other = store.sibling("the-job")
    halves = [other.save("/run/early", {"x": np.zeros(10)}, rank=0, world_size=2)]
    with pytest.raises(WaitTimeout, match="no job has heard"):
        store.snapshot("/run", wait=True, timeout_s=0.2)
    last = store.sibling("the-job")
    halves.append(last.save("/run/early", {"x": np.zeros(10)}, rank=1, world_size=2))
    halves[0].wait("nvme", timeout_s=60)
    with store.preemption("/run", signals=()) as notice:
        save(store, asked(notice, 0))
    for client in (other, last):
        client.close()


def test_a_signal_is_heeded_at_the_next_safe_point_and_its_handler_goes_away_again(store: Store) -> None:
    former = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with store.preemption("/run", signals=(signal.SIGUSR1,), grace_s=60) as notice:
            assert not notice.wanted(1)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert notice.wanted(2)
            save(store, 2)
            assert notice.leaving
            assert not notice.wanted(3)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert notice.kept is not None
    assert (notice.kept.path, notice.kept.until, notice.kept.reached) == ("/run/step-2", "pfs", True)


def test_a_forked_child_dies_of_the_signal_as_ever(store: Store) -> None:
    with store.preemption("/run", signals=(signal.SIGUSR2,)) as notice:
        up, says_up = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(says_up, b"1")  # what came before it, Python dropped
            while True:  # the signal may be here already, so nothing is to be waited for
                pass
        os.read(up, 1)
        os.kill(child, signal.SIGUSR2)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGUSR2
        os.close(up)
        os.close(says_up)
        assert not notice.wanted(np.int64(1))
    assert notice.kept is None


def test_a_daemon_that_gets_the_signal_too_stays_for_the_last_snapshot(daemon: DaemonProcess, store: Store) -> None:
    with store.preemption("/run", signals=(), grace_s=60) as notice:
        store.snapshot("/run")
        save(store, step := asked(notice, 0))  # so the daemon knows that this job follows
        os.kill(daemon.pid, signal.SIGTERM)
        notice.preempt("SIGTERM")
        assert notice.wanted(step + 1)
        save(store, step + 1)
    assert notice.kept is not None
    assert (notice.kept.path, notice.kept.reached) == (f"/run/step-{step + 1}", True)
    store.close()
    assert daemon.wait_exit() == 0


def test_when_time_runs_out_it_says_where_the_snapshot_got(daemon: DaemonProcess, store: Store) -> None:
    pfs = daemon.home.parent / "pfs"
    pfs.rename(pfs.with_name("away"))
    pfs.write_text("not a folder")
    with store.preemption("/run", signals=(), grace_s=0.0) as notice:
        notice.preempt("the machine is taken away")
        assert notice.wanted(1)
        pending = store.save("/run/1", {"x": np.zeros(10)}, rank=0, world_size=1)
        pending.wait("nvme", timeout_s=60)
    kept = notice.kept
    assert kept is not None
    assert (kept.path, kept.reached, kept.durability) == ("/run/1", False, ("nvme",))
    assert "pfs" in kept.why


def test_a_loop_that_does_not_save_is_told_that_nothing_is_kept(store: Store) -> None:
    save(store, 1)
    with store.preemption("/run", signals=(), until="nvme") as notice:
        notice.preempt("soon")
        assert notice.wanted()
    assert notice.kept is not None
    assert (notice.kept.path, notice.kept.reached) == (None, False)


def test_a_loop_that_ends_by_itself_after_a_notice_waits_for_what_it_saved_last(store: Store) -> None:
    with store.preemption("/run", signals=(), grace_s=60) as notice:
        assert not notice.wanted(1)
        save(store, 1)
        notice.preempt("soon")
    assert notice.kept is not None
    assert (notice.kept.path, notice.kept.reached) == ("/run/step-1", True)


def test_what_cannot_be_heeded_is_refused(store: Store) -> None:
    with pytest.raises(InvalidInput, match="'nowhere'"):
        store.preemption("/run", until="nowhere")
    with pytest.raises(InvalidInput):
        store.preemption("relative")
    with pytest.raises(InvalidInput):
        store.snapshot("relative")
    former = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(InvalidInput, match="signal 9"), store.preemption("/run", signals=(signal.SIGUSR1, signal.SIGKILL)):
        pass
    assert signal.getsignal(signal.SIGUSR1) is former
    refused: list[str | None] = []

    def elsewhere() -> None:
        try:
            with store.preemption("/run"):
                pass
        except InvalidInput as error:
            refused.append(error.hint)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "notice.preempt" in (refused[0] or "")
