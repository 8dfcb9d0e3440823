"""What comes after the copy goes on behind it: the tensors may change at once, and what goes wrong is told to who waits."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from ckptstore.errors import AlreadyExists
from ckptstore_client.local import LocalTransport
from ckptstore_client.staging import BoundState
from ckptstore_client.torch import Writer
from tests.sharding.simulated import Ranks
from tests.until import until

#: A gate that is never opened fails its test rather than hang it.
PATIENCE_S = 60.0


class Gate:
    """Holds what goes through it until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    def before(self, call: Any) -> Any:
        def held(*arguments: Any, **more: Any) -> Any:
            self.reached.set()
            assert self._open.wait(PATIENCE_S)
            return call(*arguments, **more)

        return held


def test_the_tensors_may_change_before_the_daemon_has_the_snapshot_and_the_future_says_when_it_has(
    ranks: Ranks, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, values = Gate(), torch.arange(1000.0)
    monkeypatch.setattr(LocalTransport, "hand_over", gate.before(LocalTransport.hand_over))
    writer = Writer(f"{folder}/x", store=ranks[0])
    staged = writer.stage({"w": values})
    values.zero_()
    assert gate.reached.wait(PATIENCE_S) and not staged.done()
    gate.open()
    assert staged.result(PATIENCE_S) == {}
    assert writer.pending is not None
    writer.pending.wait("nvme", timeout_s=PATIENCE_S)
    assert torch.equal(ranks[0].load(f"{folder}/x")["w"], torch.arange(1000.0))


def test_what_goes_wrong_behind_is_raised_by_wait(ranks: Ranks, folder: str) -> None:
    ranks[0].save(f"{folder}/x", {"w": torch.ones(3)}).wait("nvme", timeout_s=PATIENCE_S)
    pending = ranks[0].save(f"{folder}/x", {"w": torch.zeros(3)}, behind=True)
    with pytest.raises(AlreadyExists):
        pending.wait(timeout_s=PATIENCE_S)
    assert torch.equal(ranks[0].load(f"{folder}/x")["w"], torch.ones(3))


def test_what_goes_wrong_behind_ends_the_upload_and_not_the_staging_so_that_no_rank_waits_for_this_one(
    ranks: Ranks, folder: str
) -> None:
    ranks[0].save(f"{folder}/x", {"w": torch.ones(3)}).wait("nvme", timeout_s=PATIENCE_S)
    answer = dcp.async_save({"w": torch.zeros(3)}, storage_writer=Writer(f"{folder}/x", store=ranks[0]), no_dist=True)
    answer.staging_completion.result(PATIENCE_S)
    with pytest.raises(CheckpointException, match="AlreadyExists"):
        answer.upload_completion.result(PATIENCE_S)


def test_a_rank_that_copies_for_long_does_not_keep_the_others_from_the_disk(
    ranks: Ranks, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon lets the ranks of a save copy before it writes; but not for longer than the first one took."""
    gate, copy = Gate(), BoundState.copy
    slow = threading.Thread(target=lambda: ranks[1].save(f"{folder}/x", {"w": torch.ones(3)}, rank=1, world_size=2, shards={}))
    monkeypatch.setattr(BoundState, "copy", gate.before(copy))
    slow.start()
    assert gate.reached.wait(PATIENCE_S)
    until("the slow rank has joined", lambda: any(line.path == f"{folder}/x" for line in ranks[0].status().attempts))
    monkeypatch.setattr(BoundState, "copy", copy)
    first = ranks[0].save(f"{folder}/x", {"w": torch.ones(3)}, rank=0, world_size=2, shards={})
    until("the first rank's file is stored", lambda: any(line.stored == 1 for line in ranks[0].status().attempts))
    gate.open()
    first.wait("nvme", timeout_s=PATIENCE_S)
    slow.join(PATIENCE_S)
    assert ranks[0].stat(f"{folder}/x").world_size == 2
