"""Parts of a state, into objects that are there, and from damaged replicas."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ckptstore.errors import ChecksumMismatch, InvalidInput
from ckptstore_client.loading import load_state
from ckptstore_client.replicas import OpenFile, Replica
from ckptstore_tiers.checksums import BLOCK_BYTES
from tests.contract.state_files import Replicas, assert_identical, loaded, random_tensor, reader, staged

# --- only and into -----------------------------------------------------------------------------------------------------------------


def test_only_leaves_out_what_does_not_match() -> None:
    data = staged(
        {"model": {"a": torch.ones(2), "b": torch.zeros(2)}, "optim": {"a": 1}, "list": [1, {"a": 2}, "x"], "step": 3, "pair": (1, 2)}
    )
    assert_identical(loaded(data, only="model/a"), {"model": {"a": torch.ones(2)}})
    assert_identical(loaded(data, only=["list/1/*", "step"]), {"list": [None, {"a": 2}, None], "step": 3})
    assert_identical(loaded(data, only="pair/1"), {"pair": (None, 2)})
    assert_identical(loaded(data, only="*/a"), {"model": {"a": torch.ones(2)}, "optim": {"a": 1}, "list": [None, {"a": 2}, None]})


def test_only_what_matches_is_read() -> None:
    state = {"a": random_tensor(torch.uint8, 4 * BLOCK_BYTES), "b": random_tensor(torch.uint8, 4 * BLOCK_BYTES)}
    data = bytearray(staged(state))
    with reader(bytes(data)) as source:
        for index in range(5, 8):  # damage what belongs to `b` alone
            data[index * BLOCK_BYTES + 5000] ^= 1
        source._source.bytes_by_tier["memory"] = bytes(data)  # type: ignore[attr-defined]
        assert torch.equal(load_state(source, None, "a")["a"], state["a"])
        with pytest.raises(ChecksumMismatch):
            load_state(source, None, "b")


def test_into_fills_the_same_objects() -> None:
    weight = torch.randn(600, 600)
    saved = {
        "w": weight,
        "tied": weight,
        "t": torch.randn(300, 500).t(),
        "n": np.arange(5.0),
        "o": {0: {"step": 7, "l": [1, (2, 3)]}},
        "s": torch.ones(()),
    }
    target_weight = torch.zeros(600, 600)
    into = {
        "w": target_weight,
        "tied": target_weight,
        "t": torch.zeros(300, 500).t(),
        "n": np.zeros(10)[::2],
        "o": {0: {"step": 0, "l": [0, (0, 3)]}},
    }
    into["s"] = torch.nn.Parameter(torch.zeros(()))
    strided, inner = into["t"], into["o"]
    assert loaded(staged(saved), into=into) is into
    assert into["w"] is target_weight
    assert into["t"] is strided
    assert into["o"] is inner
    assert torch.equal(target_weight, weight)
    assert torch.equal(strided, saved["t"])
    assert np.array_equal(into["n"], saved["n"])
    assert inner == {0: {"step": 7, "l": [1, (2, 3)]}}
    assert into["s"].item() == 1


def test_into_a_part_with_only_leaves_the_rest_alone() -> None:
    data = staged({"a": torch.ones(3), "b": torch.ones(3), "step": 1})
    into = {"a": torch.zeros(3), "b": torch.zeros(3), "step": 0, "extra": 5}
    loaded(data, into=into, only="a")
    assert_identical(into, {"a": torch.ones(3), "b": torch.zeros(3), "step": 0, "extra": 5})


SAVED = {"m": {"w": torch.ones(2, 3), "n": np.ones(2)}, "l": [1, 2]}
UNFIT = {
    "m/w": {"m": {"w": torch.zeros(3, 2), "n": np.ones(2)}, "l": [1, 2]},
    "m/n": {"m": {"w": torch.zeros(2, 3), "n": np.ones(2, np.float32)}, "l": [1, 2]},
    "m": {"m": [1], "l": [1, 2]},
    "l": {"m": {"w": torch.zeros(2, 3), "n": np.ones(2)}, "l": [1, 2, 3]},
    "m/x": {"m": {"w": torch.zeros(2, 3), "n": np.ones(2), "x": 1}, "l": [1, 2]},
    "l/1": {"m": {"w": torch.zeros(2, 3), "n": np.ones(2)}, "l": [1, torch.ones(1)]},
}


@pytest.mark.parametrize("place", UNFIT)
def test_into_that_does_not_fit_is_refused_by_place_and_untouched(place: str) -> None:
    into = UNFIT[place]
    with pytest.raises(InvalidInput) as refusal:
        loaded(staged(SAVED), into=into)
    assert refusal.value.subject == place
    weight = into["m"]["w"] if isinstance(into["m"], dict) else None
    assert weight is None or not weight.any()


def test_into_what_cannot_be_written_is_refused() -> None:
    frozen = np.ones(2)
    frozen.flags.writeable = False
    shared = torch.zeros(2)
    with pytest.raises(InvalidInput, match="read-only"):
        loaded(staged({"a": np.ones(2)}), into={"a": frozen})
    with pytest.raises(InvalidInput, match="expanded"):
        loaded(staged({"a": torch.ones(4, 2)}), into={"a": torch.zeros(1, 2).expand(4, 2)})
    with pytest.raises(InvalidInput, match="tied"):
        loaded(staged({"a": torch.ones(2), "b": torch.ones(2)}), into={"a": shared, "b": shared})
    with pytest.raises(InvalidInput, match="missing here"):
        loaded(staged({"a": 1, "b": 2}), into={"a": 0})


# --- damage ------------------------------------------------------------------------------------------------------------------------


def _flipped(data: bytes, position: int) -> bytes:
    damaged = bytearray(data)
    damaged[position] ^= 0x10
    return bytes(damaged)


@pytest.mark.parametrize("tier", ["memory", "nvme"])
@pytest.mark.parametrize("position", [3, 100, BLOCK_BYTES - 1, 2 * BLOCK_BYTES + 7, -1])
def test_a_flipped_bit_is_noticed_reported_and_read_from_the_next_replica(tier: str, position: int) -> None:
    state = {"w": random_tensor(torch.uint8, 3 * BLOCK_BYTES), "s": torch.ones(3)}
    data = staged(state)
    source = Replicas({tier: _flipped(data, position), "pfs": data})
    with reader(data, source) as object_reader:
        assert_identical(load_state(object_reader, None, None), state)
    assert set(source.reports) == {(tier, position % len(data) // BLOCK_BYTES)}


def test_a_segment_that_was_reused_is_asked_for_no_further_block() -> None:
    state = {"w": random_tensor(torch.uint8, 40 * BLOCK_BYTES)}
    data = staged(state)
    source = Replicas({"memory": bytes(len(data)), "nvme": data})
    with reader(data, source) as object_reader:
        assert_identical(load_state(object_reader, None, None), state)
    assert {tier for tier, _ in source.reports} == {"memory"}
    assert len(source.reports) < 10


def test_without_a_good_replica_the_mismatch_names_object_tier_and_file() -> None:
    data = staged({"w": random_tensor(torch.uint8, 2 * BLOCK_BYTES)})
    source = Replicas({"memory": _flipped(data, -1), "nvme": _flipped(data, -2)})
    with reader(data, source) as object_reader, pytest.raises(ChecksumMismatch) as mismatch:
        load_state(object_reader, None, None)
    assert "/a/rank-0 (object 00000000" in str(mismatch.value)
    assert mismatch.value.tier == "memory, nvme"


def test_a_replica_that_is_too_short_is_passed_over() -> None:
    state = {"w": random_tensor(torch.uint8, 2 * BLOCK_BYTES)}
    data = staged(state)
    with reader(data, Replicas({"nvme": data[:BLOCK_BYTES], "pfs": data})) as object_reader:
        assert_identical(load_state(object_reader, None, None), state)


def test_a_file_on_disk_is_read_directly(tmp_path: Path) -> None:
    state = {"w": random_tensor(torch.uint8, 2 * BLOCK_BYTES + 77)}
    data = staged(state)
    place = tmp_path / "replica"
    place.write_bytes(data)

    class OnDisk(Replicas):
        def open(self, object_id: str, tier: str) -> Replica:
            return OpenFile(os.open(place, os.O_RDONLY), tier, size_bytes=len(data))

    with reader(data, OnDisk({"nvme": data})) as object_reader:
        assert_identical(load_state(object_reader, None, None), state)
