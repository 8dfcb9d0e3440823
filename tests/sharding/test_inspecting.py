"""Looking into checkpoints: every number as torch sees it, whoever holds it; and what of two need not be read to be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor import Shard

from ckptstore.errors import InvalidInput, NotFound
from ckptstore_client.inspecting import comparing, numbers, tensors
from ckptstore_client.inspecting.numbers import as_numbers, slabs
from ckptstore_client.inspecting.tensors import describe, list_tensors
from tests.daemon_process import DaemonProcess
from tests.e2e.shell import Shell
from tests.sharding.simulated import Ranks, dtensor, mesh_of, states_of

SMALL = {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "SLAB_BYTES", 64)
    for module in (tensors, comparing):
        monkeypatch.setattr(module, "NUMBERS_AT_ONCE", 5)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tensors that a comparison reads."""
    names: list[str] = []

    def reading(spread: Any, open_part: Any) -> Iterator[Any]:
        names.append(spread.name)
        return numbers.read_slabs(spread, open_part)

    monkeypatch.setattr(comparing, "read_slabs", reading)
    return names


# --- numbers -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SMALL)
def test_every_code_of_an_8_bit_float_is_the_number_that_torch_takes_it_for(dtype: str) -> None:
    codes = np.arange(256, dtype=np.uint8)
    theirs = torch.from_numpy(codes.copy()).view(getattr(torch, SMALL[dtype])).to(torch.float64).numpy()
    np.testing.assert_array_equal(as_numbers(codes, dtype), theirs)


def test_every_code_of_bfloat16_is_the_number_that_torch_takes_it_for() -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    theirs = torch.from_numpy(codes.view(np.int16).copy()).view(torch.bfloat16).to(torch.float64).numpy()
    np.testing.assert_array_equal(as_numbers(codes, "BF16"), theirs)


@given(st.lists(st.integers(0, 5), max_size=4), st.integers(1, 40))
def test_slabs_are_the_whole_in_order_and_none_is_too_large(shape: list[int], most: int) -> None:
    whole = np.arange(math.prod(shape)).reshape(shape)
    parts = [whole[tuple(slice(o, o + n) for o, n in zip(box.offset, box.size, strict=True))].reshape(-1) for box in slabs(shape, most)]
    assert all(0 < len(part) <= most for part in parts)
    np.testing.assert_array_equal(np.concatenate([np.empty(0, int), *parts]), whole.reshape(-1))


# --- cat -----------------------------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_whole_tensor_whoever_holds_it(ranks: Ranks, folder: str, small_slabs: None) -> None:
    whole = torch.randn(24, 10)
    whole[3, 3], whole[4, 4], whole[5, 5], whole[6] = math.nan, math.inf, -math.inf, 0.0

    def state(rank: int) -> dict[str, Any]:
        mesh = mesh_of((4,))
        return {"rows": dtensor(whole, mesh, [Shard(0)]), "columns": dtensor(whole.to(torch.bfloat16), mesh, [Shard(1)]), "own": rank}

    ranks.save(f"{folder}/x", states_of(4, state))
    with ranks[0].open_tensors(f"{folder}/@latest") as checkpoint:
        listed = {info.name: (info.dtype, info.shape, info.size_bytes) for info in list_tensors(checkpoint)}
    assert listed == {"columns": ("BF16", (24, 10), 480), "rows": ("F32", (24, 10), 960)}
    found = {one.name: one for one in describe(ranks[0], f"{folder}/x", ["*"])}
    for name, stored in (("rows", whole), ("columns", whole.to(torch.bfloat16))):
        values = stored.to(torch.float64).numpy().reshape(-1)
        finite = values[np.isfinite(values)]
        one = found[name]
        assert (one.minimum, one.maximum) == (finite.min(), finite.max())
        assert (one.mean, one.std) == (pytest.approx(finite.mean()), pytest.approx(finite.std()))
        assert (one.nans, one.infinities, one.zeros) == (1, 2, 10)
        assert one.first == tuple(values[: tensors.FIRST])
        assert (one.pieces, [place.rank for place in one.places]) == (4, [0, 1, 2, 3])
        assert sum(place.size_bytes for place in one.places) == one.size_bytes


def test_integers_truth_values_complex_numbers_scalars_and_nothing_have_statistics(ranks: Ranks, folder: str) -> None:
    state = {
        "big": np.array([2**63 - 1, -5], np.int64),
        "truth": torch.tensor([True, False]),
        "wave": torch.tensor([1 + 2j, complex(math.nan, 0)], dtype=torch.complex64),
        "one": torch.tensor(2.5),
        "none": torch.empty(0, 3),
        "huge": torch.tensor([1e308, -1e308], dtype=torch.float64),
    }
    ranks[0].save(f"{folder}/x", state, rank=0, world_size=1).wait("nvme", timeout_s=60)
    found = {one.name: one for one in describe(ranks[0], f"{folder}/x", ["*"])}
    assert (found["big"].minimum, found["big"].maximum, found["big"].first) == (-5, 2**63 - 1, (2**63 - 1, -5))
    assert (found["truth"].first, found["truth"].zeros, found["truth"].mean) == ((True, False), 1, 0.5)
    assert (found["wave"].nans, found["wave"].mean, found["wave"].first[0]) == (1, None, "(1+2j)")
    assert (found["one"].mean, found["one"].std, found["one"].shape) == (2.5, 0.0, ())
    assert (found["none"].minimum, found["none"].mean, found["none"].first) == (None, None, ())
    assert (found["huge"].maximum, found["huge"].std) == (1e308, None)


def test_ranks_that_saved_states_of_their_own_are_looked_at_one_by_one(ranks: Ranks, folder: str) -> None:
    ranks.save(f"{folder}/x", [{"w": torch.full((3,), float(rank))} for rank in range(2)])
    (one,) = describe(ranks[0], f"{folder}/x", ["w"], rank=1)
    assert (one.minimum, one.places[0].rank) == (1.0, 1)
    with pytest.raises(InvalidInput, match="2 ranks"):
        list(describe(ranks[0], f"{folder}/x", ["w"]))
    with pytest.raises(InvalidInput, match="rank 2"):
        list(describe(ranks[0], f"{folder}/x", ["w"], rank=2))
    with pytest.raises(NotFound, match="v\\*"):
        list(describe(ranks[0], f"{folder}/x", ["w", "v*"], rank=1))


# --- diff ----------------------------------------------------------------------------------------------------------------------------


def test_what_changed_is_told_in_numbers_and_what_did_not_is_not_told(ranks: Ranks, folder: str, small_slabs: None) -> None:
    before = {
        "same": torch.randn(50),
        "drifts": torch.randn(9, 11),
        "breaks": torch.tensor([1.0, 2.0, math.nan]),
        "signs": torch.tensor([0.0, 1.0]),
        "count": np.array([5, 6], np.int32),
        "wide": torch.zeros(3),
        "gone": torch.ones(2),
        "grows": torch.ones(4),
    }
    after = {name: value.copy() if isinstance(value, np.ndarray) else value.clone() for name, value in before.items() if name != "gone"}
    after["drifts"][2:4] += 0.25
    after["breaks"][1] = math.inf
    after["signs"][0] = -0.0
    after["count"][1] = 9
    after |= {"wide": torch.zeros(3, dtype=torch.bfloat16), "grows": torch.ones(5), "new": torch.ones(1)}
    ranks[0].save(f"{folder}/1", before, rank=0, world_size=1).wait("nvme", timeout_s=60)
    ranks[0].save(f"{folder}/2", after, rank=0, world_size=1).wait("nvme", timeout_s=60)
    found = ranks[0].diff(f"{folder}/1", f"{folder}/@latest")
    told = {one.name: one for one in found.differences}
    assert {name: one.change for name, one in told.items()} == {
        "breaks": "changed", "count": "changed", "drifts": "changed", "signs": "changed", "gone": "removed", "grows": "retyped",
        "new": "added", "wide": "retyped",
    }  # fmt: skip
    moved = (after["drifts"] - before["drifts"]).to(torch.float64)
    assert told["drifts"].elements == 22
    assert told["drifts"].max_abs == pytest.approx(float(moved.abs().max()))
    assert told["drifts"].relative == pytest.approx(float(moved.norm() / before["drifts"].to(torch.float64).norm()))
    assert (told["breaks"].elements, told["breaks"].not_finite, told["breaks"].max_abs) == (1, 1, None)
    assert (told["signs"].elements, told["signs"].max_abs) == (1, 0.0)
    assert (told["count"].elements, told["count"].max_abs) == (1, 3.0)
    assert (found.equal, found.after) == (1, f"{folder}/2")
    only = ranks[0].diff(f"{folder}/1", f"{folder}/2", only=["gone", "same"])
    assert ([one.name for one in only.differences], only.equal) == (["gone"], 1)
    with pytest.raises(InvalidInput, match="neither"):
        ranks[0].diff(f"{folder}/1", f"{folder}/2", only="nothing*")


@pytest.mark.parametrize("incremental", [False, True])
def test_nothing_is_read_of_what_checksums_say_is_equal(ranks: Ranks, folder: str, read: list[str], incremental: bool) -> None:
    """The whole of large tensors, and after incremental saves of all."""
    state = {"large": torch.randn(5 << 20), "small": torch.randn(3), "other": torch.randn(3 << 20)}
    for step in range(2):
        state["other"][-1] = float(step)
        ranks[0].save(f"{folder}/{step}", state, rank=0, world_size=1, incremental=incremental).wait("nvme", timeout_s=60)
    found = ranks[0].diff(f"{folder}/0", f"{folder}/1")
    assert [(one.name, one.elements, one.max_abs) for one in found.differences] == [("other", 1, pytest.approx(1, abs=5))]
    assert found.equal == 2
    assert set(read) <= ({"other"} if incremental else {"other", "small"})
    assert found.unread == 4 - len(set(read)) - 1


def test_tensors_are_compared_whole_however_they_are_cut(ranks: Ranks, folder: str, read: list[str]) -> None:
    whole = torch.randn(16, 6)
    changed = whole.clone()
    changed[7, 2] += 1
    for name, value, count in (("four", whole, 4), ("again", whole, 4), ("two", whole, 2), ("changed", changed, 2)):
        ranks.save(f"{folder}/{name}", states_of(count, lambda _, v=value, n=count: {"w": dtensor(v, mesh_of((n,)), [Shard(0)])}))
    ranks[0].save(f"{folder}/one", {"w": whole}, rank=0, world_size=1).wait("nvme", timeout_s=60)
    assert (ranks[0].diff(f"{folder}/four", f"{folder}/again").unread, read) == (1, [])
    for other in ("two", "one"):
        assert (ranks[0].diff(f"{folder}/four", f"{folder}/{other}").equal, read.pop(), read.pop()) == (1, "w", "w")
    (told,) = ranks[0].diff(f"{folder}/four", f"{folder}/changed").differences
    assert (told.elements, told.max_abs) == (1, pytest.approx(1, rel=1e-5))


# --- the command line ----------------------------------------------------------------------------------------------------------------


def test_the_command_line_shows_both(daemon: DaemonProcess, ranks: Ranks, folder: str) -> None:
    shell = Shell(daemon.home)
    for step in range(2):
        state = {"model": {"layer.0.weight": torch.full((2, 3), float(step)), "bias": torch.zeros(3)}}
        ranks[0].save(f"{folder}/{step}", state, step=step, rank=0, world_size=1).wait("nvme", timeout_s=60)
    listed = shell.ok("cat", f"{folder}/@latest", "--json").lines
    assert [(info["name"], info["shape"]) for info in listed] == [("model/bias", [3]), ("model/layer.0.weight", [2, 3])]
    assert "layer.0.weight" in shell.ok("cat", f"{folder}/@latest").out
    (one,) = shell.ok("cat", f"{folder}/1", "model/layer.*", "--json").lines
    assert (one["mean"], one["first"], one["places"][0]["file"]) == (1.0, [1.0] * 6, "rank-00000-of-00001.safetensors")
    shown = shell.ok("cat", f"{folder}/1", "model/layer.0.weight").out
    assert "2 × 3" in shown and "mean 1" in shown and "nvme" in shown
    document = shell.ok("diff", f"{folder}/0", f"{folder}/1", "--json").document
    assert [(one["name"], one["elements"]) for one in document["differences"]] == [("model/layer.0.weight", 6)]
    told = shell.ok("diff", f"{folder}/0", f"{folder}/1", "--only", "model/*")
    assert "model/layer.0.weight" in told.out and "1 changed, 1 equal" in told.err
    assert shell("cat", f"{folder}/1", "nothing").code == NotFound.exit_code
