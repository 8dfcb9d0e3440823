"""A rank of a sharded save is killed: whatever the moment and the way to save, the checkpoint is there whole, or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore
from ckptstore.errors import AttemptAborted, NotFound
from ckptstore_client import Part
from ckptstore_client.local import LocalTransport
from ckptstore_client.staging import BoundState
from tests.daemon_process import DaemonProcess
from tests.e2e.job import Job
from tests.files import files_below
from tests.sharding.dcp_program import digest
from tests.sharding.dying_program import VICTIM
from tests.sharding.simulated import Ranks
from tests.until import until

WHOLE = np.arange(300_000, dtype=np.float32).reshape(3, -1)
MOMENTS = ["before it saves", "while it copies", "before it hands over", "once it has handed over"]


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def doomed_rank(home: Path, path: str, moment: str) -> None:
    """Rank 2 of three, in a process of its own."""
    store = ckptstore.connect(home=home, start=False, group="simulated ranks")
    if moment == "before it saves":
        die()
    elif moment == "while it copies":

        def die_once_joined(*_: Any) -> None:
            until("the daemon knows of this rank", lambda: any(line.path == path and line.joined == 3 for line in store.status().attempts))
            die()

        BoundState.copy = die_once_joined  # type: ignore[method-assign]
    elif moment == "before it hands over":
        LocalTransport.hand_over = die  # type: ignore[method-assign]
    store.save(path, {"w": WHOLE[2:].copy()}, rank=2, world_size=3, shards={"w": Part(0, 2, 3)})
    die()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_rank_killed_at_any_moment_leaves_a_whole_checkpoint_or_none(
    daemon: DaemonProcess, ranks: Ranks, folder: str, moment: str
) -> None:
    path = f"{folder}/x"
    pending = [
        ranks[rank].save(path, {"w": WHOLE[rank : rank + 1].copy()}, rank=rank, world_size=3, shards={"w": Part(0, rank, 3)})
        for rank in range(2)
    ]
    process = multiprocessing.get_context("spawn").Process(target=doomed_rank, args=(daemon.home, path, moment))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    if moment == "once it has handed over":
        for one in pending:
            one.wait("nvme", timeout_s=60)
        assert np.array_equal(ranks[0].load(path)["w"], WHOLE)
        return
    if moment == "before it saves":  # nobody knows of it yet: the attempt would expire; its own launcher starts it again
        doomed = ranks[2].save(path, {"w": WHOLE[2:].copy()}, rank=2, world_size=3, shards={"w": Part(0, 2, 3)})
        doomed.wait("nvme", timeout_s=60)
        assert np.array_equal(ranks[0].load(path)["w"], WHOLE)
        return
    for one in pending:
        with pytest.raises(AttemptAborted):
            one.wait("nvme", timeout_s=60)
    with pytest.raises(NotFound):
        ranks[0].load(path)


# --- real jobs, in every way to save ----------------------------------------------------------------------------------


class DyingJob(Job):
    program = Path(__file__).with_name("dying_program.py")


@pytest.mark.parametrize("moment", ["joined", "copied", "handed over"])
@pytest.mark.parametrize("way", ["save", "behind", "guard", "incremental", "dcp.save", "dcp.async_save"])
def test_a_rank_of_a_training_job_killed_in_any_way_to_save_leaves_a_whole_checkpoint_or_none(
    daemon: DaemonProcess, ranks: Ranks, folder: str, way: str, moment: str
) -> None:
    path = f"{folder}/x"
    with DyingJob(daemon.home, folder, way, [[moment]] * 3) as job:
        digests = {said["digest"] for said in job.expect("saving", range(3))}
        until("the job is over", lambda: all(process.poll() is not None for process in job.processes))
        assert job.processes[VICTIM].poll() == -signal.SIGKILL
    until("the daemon is done with it", lambda: not any(line.path == path for line in ranks[0].status().attempts))
    if moment == "handed over":
        assert {digest(ranks[0].load(path))} == digests
        return
    with pytest.raises(NotFound):
        ranks[0].load(path)
    objects = daemon.home / "nvme" / "objects" / path.lstrip("/")
    until("the space of what was aborted is freed", lambda: not files_below(objects))
