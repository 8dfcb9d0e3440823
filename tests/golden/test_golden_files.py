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
import xxhash

from ckptstore.catalog.model import AttemptState, AttemptView, Kind, StoredFile
from ckptstore.layout import LAYOUT_KEY, Elsewhere, Layout, write_layout
from ckptstore.manifest import build_index, part_file_name, read_index
from ckptstore.safetensors_format import Header, TensorEntry, parse_header
from ckptstore.wire import FileInfo
from ckptstore_client.loading import load_state
from ckptstore_client.reading import VerifiedObject
from ckptstore_client.replicas import OpenFile, Replica
from ckptstore_client.staging import Staging
from ckptstore_server.partial_files import PartialFile, in_order
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests

FOLDER = Path(__file__).parent
PART = FOLDER / "part-1.safetensors"
INCREMENT = FOLDER / "increment-1.safetensors"
INDEX = FOLDER / "checkpoint-1.json"
#: The object that an incremental part refers to: the whole one.
BASE = "0" * 32


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


def later_state() -> dict[str, Any]:
    """In which a tensor has changed and one has come; the others are as they were."""
    later = state()
    later["model"]["half"] = torch.tensor([3.5, 0.25], dtype=torch.bfloat16)
    later["new"] = np.array([[1.0, 2.0]])
    return later


def staged(what: dict[str, Any] | None = None) -> bytes:
    staging = Staging()
    plan = staging.plan(state() if what is None else what)
    segment = bytearray(plan.size_bytes)
    staging.copy(plan, memoryview(segment))
    return bytes(segment)


def increment() -> bytes:
    """What is stored of the later state, whose unchanged tensors are those of the whole part."""
    base, later = PART.read_bytes(), staged(later_state())
    before, after = parse_header(base, len(base)), parse_header(later, len(later))
    own, elsewhere = {}, {}
    for key, entry in after.tensors.items():
        value, old = bytes_of(later, after, entry), before.tensors.get(key)
        digest = xxhash.xxh3_128_hexdigest(value)
        if old is not None and value == bytes_of(base, before, old):
            start = before.data_start + old.start
            elsewhere[key] = Elsewhere(TensorEntry(key, old.dtype, old.shape, start, start + old.size_bytes), digest, BASE)
        else:
            own[key] = digest
    entries = [entry for entry in in_order(after) if entry.key in own]
    metadata = after.metadata | {LAYOUT_KEY: write_layout(Layout(own, elsewhere))}
    source = PartialFile.of(entries, metadata, memoryview(later)[after.data_start :]).source
    assert source.size_bytes <= BLOCK_BYTES
    return bytes(source.block(0, memoryview(bytearray(BLOCK_BYTES))))


def bytes_of(file: bytes, header: Header, entry: TensorEntry) -> bytes:
    return file[header.data_start + entry.start : header.data_start + entry.end]


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

    def __init__(self, place: Path = PART) -> None:
        self._place = place

    def openable(self, object_id: str, *, recall: bool = True) -> list[str]:
        return ["nvme"]

    def open(self, object_id: str, tier: str) -> Replica:
        return OpenFile(os.open(self._place, os.O_RDONLY), tier, size_bytes=self._place.stat().st_size)

    def part(self, object_id: str) -> Replica:
        pytest.fail("the file itself can be opened")

    def stream(self, object_id: str, *, recall: bool = True) -> Replica:
        pytest.fail("the file itself is whole")

    def report_damage(self, object_id: str, tier: str, block: int) -> None:
        pytest.fail("the file itself is whole")


def opened(place: Path, object_id: str) -> VerifiedObject:
    data = place.read_bytes()
    digests = BlockDigests.of(data)
    file = FileInfo(object_id=object_id, name="part", rank=0, size_bytes=len(data), digest=digests.root, blocks=digests.blocks)
    return VerifiedObject(file, GoldenFile(place), operation="load", path="/gold")


def open_base(object_id: str) -> VerifiedObject:
    assert object_id == BASE
    return opened(PART, BASE)


def test_the_part_of_version_1_is_still_read() -> None:
    with opened(PART, BASE) as reader:
        assert_is(load_state(reader, None, None), state())


def test_the_incremental_part_of_version_1_is_still_read_with_what_it_refers_to() -> None:
    with opened(INCREMENT, "1" * 32) as reader:
        found = load_state(reader, None, None, open_base)
    assert_is(found, later_state())
    assert np.array_equal(found["new"], [[1.0, 2.0]])


def test_the_incremental_part_of_version_1_is_still_written_byte_by_byte() -> None:
    assert increment() == INCREMENT.read_bytes()


def assert_is(found: dict[str, Any], expected: dict[str, Any]) -> None:
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
    for place, write in ((PART, staged), (INCREMENT, increment), (INDEX, index)):
        if not place.exists():
            place.write_bytes(write())
