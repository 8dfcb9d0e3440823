"""A rank's file whose header is too large for the daemon's own process is checked in another one, and says the same."""

from __future__ import annotations

import os

import numpy as np
import pytest

from ckptstore.errors import InvalidInput
from ckptstore_client import Part
from ckptstore_client.sharding.slices import ShardRequest
from ckptstore_client.staging import Staging
from ckptstore_server.part_check import _check_elsewhere, check_file


def file_of(rank: int) -> bytearray:
    state = {"w": np.ones((2, 3), np.float32), "own": np.arange(4), "note": {"step": rank, "names": ["a", {}]}}
    staging = Staging()
    staged = staging.plan(state, ShardRequest(rank, 2, {"w": Part(0, rank, 2)}))
    memory = bytearray(staged.size_bytes)
    staging.copy(staged, memoryview(memory))
    return memory


def checked_elsewhere(memory: bytearray, rank: int) -> object:
    fd = os.memfd_create("rank file")
    try:
        os.write(fd, memory)
        return _check_elsewhere(fd, len(memory), rank)
    finally:
        os.close(fd)


def test_the_other_process_finds_what_this_one_would() -> None:
    memory = file_of(1)
    here = check_file(memoryview(memory), 1).declared
    assert here is not None and [entry.key for entry in here.tensors] == ["own"] and here.texts["note/step"] == "int 1"
    assert checked_elsewhere(memory, 1) == here


def test_a_file_that_is_another_ranks_is_refused_in_both() -> None:
    memory = file_of(1)
    with pytest.raises(InvalidInput, match="rank 0 says what rank 1 has"):
        check_file(memoryview(memory), 0)
    with pytest.raises(InvalidInput, match="rank 0 says what rank 1 has"):
        checked_elsewhere(memory, 0)
