"""The format does not drift: what this version wrote once is read as it was, and written again byte by byte.

A new format version gets a file of its own; the old ones stay, and stay readable. `python -m tests.golden.test_golden_files` writes
files that are missing, and never touches one that is there.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckptstore.catalog.model import AttemptState, AttemptView, Kind, StoredFile
from ckptstore.manifest import build_index, part_file_name, read_index
from ckptstore.wire import FileInfo
from ckptstore_client.loading import load_state
from ckptstore_client.reading import VerifiedObject
from ckptstore_client.replicas import OpenFile, Replica
from ckptstore_client.staging import Staging
from ckptstore_tiers.checksums import BlockDigests

FOLDER = Path(__file__).parent
PART = FOLDER / "part-1.safetensors"
INDEX = FOLDER / "checkpoint-1.json"


def state() -> dict[str, Any]:
    weight = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    return {
        "model": OrderedDict([("w", weight), ("tied", weight), ("half", torch.tensor([1.5, -2.0], dtype=torch.bfloat16))]),
        "optim": {
            "state": {0: {"step": torch.tensor(7.0)}, 1: {"m/v": np.arange(3, dtype=np.int16)}},
            "groups": [(0.1, None), {"on": True}],
        },
        "$odd": {None: 1 << 70, "é": float("-inf"), 2.5: -0.0, "1": b"\x00\xff", 1: 1 + 2j},
        "size": torch.Size([2, 3]),
        "dtype": torch.float16,
        "device": torch.device("cuda", 0),
        "scalar": np.float32(0.5),
        "empty": torch.empty(0, 3),
    }


def staged() -> bytes:
    staging = Staging()
    plan = staging.plan(state())
    segment = bytearray(plan.size_bytes)
    staging.copy(plan, memoryview(segment))
    return bytes(segment)


def index() -> bytes:
    attempt = AttemptView(
        attempt_id="a" * 32,
        path="/runs/gold",
        kind=Kind.CHECKPOINT,
        state=AttemptState.COMPLETE,
        reason=None,
        world_size=2,
        step=100,
        metadata='{"note":"é"}',
        replace=False,
        joined=2,
        snapshots=2,
        stored=2,
        publication_id=None,
        opened_at_s=1700000000.5,
        idle_s=0.0,
    )
    files = [StoredFile(f"{rank:032x}", part_file_name(rank, 2), rank, "", "", 4096, "b" * 32, b"") for rank in range(2)]
    return build_index(attempt, files)


class GoldenFile:
    """The file as the only replica."""

    def openable(self, object_id: str, *, recall: bool = True) -> list[str]:
        return ["nvme"]

    def open(self, object_id: str, tier: str) -> Replica:
        return OpenFile(os.open(PART, os.O_RDONLY), tier, size_bytes=PART.stat().st_size)

    def stream(self, object_id: str, *, recall: bool = True) -> Replica:
        pytest.fail("the file itself is whole")

    def report_damage(self, object_id: str, tier: str, block: int) -> None:
        pytest.fail("the file itself is whole")


def test_the_part_of_version_1_is_still_read() -> None:
    data = PART.read_bytes()
    digests = BlockDigests.of(data)
    file = FileInfo(object_id="0" * 32, name="part", rank=0, size_bytes=len(data), digest=digests.root, blocks=digests.blocks)
    with VerifiedObject(file, GoldenFile(), operation="load", path="/gold") as reader:
        found = load_state(reader, None, None)
    expected = state()
    assert type(found["model"]) is OrderedDict
    assert found["model"]["w"] is found["model"]["tied"]
    for name in ("w", "half"):
        assert torch.equal(found["model"][name], expected["model"][name])
    assert torch.equal(found["optim"]["state"][0]["step"], torch.tensor(7.0))
    assert np.array_equal(found["optim"]["state"][1]["m/v"], np.arange(3, dtype=np.int16))
    for name in ("$odd", "size", "dtype", "device", "scalar"):
        assert (type(found[name]), repr(found[name])) == (type(expected[name]), repr(expected[name]))
    assert found["optim"]["groups"] == [(0.1, None), {"on": True}]
    assert found["empty"].shape == (0, 3)


def test_the_part_of_version_1_is_still_written_byte_by_byte() -> None:
    assert staged() == PART.read_bytes()


def test_the_index_of_version_1_is_still_read_and_written() -> None:
    assert index() == INDEX.read_bytes()
    assert [part.rank for part in read_index(INDEX.read_bytes()).parts] == [0, 1]


if __name__ == "__main__":
    for place, data in ((PART, staged()), (INDEX, index())):
        if not place.exists():
            place.write_bytes(data)
