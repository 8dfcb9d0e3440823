"""Plain tensors that ranks have in common, as all of a model under data parallelism: stored by one rank, loaded by each as its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.daemon_process import DaemonProcess
from tests.sharding.simulated import Ranks

MEBIBYTE = 1 << 18  # elements of float32


def stored_bytes(daemon: DaemonProcess, path: str) -> list[int]:
    """Of the ranks' files, by rank."""
    return [file.stat().st_size for file in sorted((daemon.home / "nvme/objects" / path[1:]).glob("rank-*"))]


def test_a_model_that_all_ranks_have_is_stored_once_and_loads_anywhere(ranks: Ranks, folder: str, daemon: DaemonProcess) -> None:
    model = {"w": torch.randn(MEBIBYTE), "b": torch.randn(MEBIBYTE), "step": torch.tensor(7)}
    states = [{"model": model, "rng": torch.tensor([rank]), "epoch": 3} for rank in range(4)]
    ranks.save(f"{folder}/x", states, shards={})
    sizes = stored_bytes(daemon, f"{folder}/x")
    assert sum(size > 2 << 20 for size in sizes) == 1 and sum(sizes) < (2 << 20) + 4 * 8192
    for rank in range(4):
        own = ranks[rank].load(f"{folder}/x", rank=rank)
        assert own["rng"].item() == rank and own["epoch"] == 3
        assert all(torch.equal(own["model"][name], value) for name, value in model.items())
    into = {"model": {name: torch.zeros_like(value) for name, value in model.items()}, "epoch": 0}
    ranks[0].load(f"{folder}/x", into=into)
    assert into["epoch"] == 3 and all(torch.equal(into["model"][name], value) for name, value in model.items())


def test_groups_of_ranks_with_tensors_of_their_own_store_each_once_and_get_their_own_back(
    ranks: Ranks, folder: str, daemon: DaemonProcess, tmp_path: Path
) -> None:
    """Two groups of two ranks, each with its half of a model under the same name: nobody said that these are parts."""
    halves = [torch.randn(MEBIBYTE), torch.randn(MEBIBYTE)]
    ranks.save(f"{folder}/x", [{"w": halves[rank % 2]} for rank in range(4)], shards={})
    assert sum(size > 1 << 20 for size in stored_bytes(daemon, f"{folder}/x")) == 2
    for rank in range(4):
        assert torch.equal(ranks[rank].load(f"{folder}/x", rank=rank)["w"], halves[rank % 2])
        into = {"w": torch.zeros(MEBIBYTE)}
        ranks[0].load(f"{folder}/x", into=into, per_rank=rank)
        assert torch.equal(into["w"], halves[rank % 2])


@pytest.mark.parametrize("changed", ["value", "dtype", "shape"])
def test_a_tensor_that_differs_in_anything_is_stored_by_each(
    ranks: Ranks, folder: str, daemon: DaemonProcess, changed: str
) -> None:
    one = torch.zeros(MEBIBYTE)
    other: Any = {"value": one.clone(), "dtype": one.view(torch.int32), "shape": one.view(2, -1)}[changed]
    if changed == "value":
        other[-1] = -0.0  # equal, and other bits
    ranks.save(f"{folder}/x", [{"t": one}, {"t": other}], shards={})
    assert all(size > 1 << 20 for size in stored_bytes(daemon, f"{folder}/x"))
    loaded = ranks[0].load(f"{folder}/x", rank=1)["t"]
    assert loaded.dtype is other.dtype and loaded.shape == other.shape
    assert torch.equal(loaded.view(torch.int32), other.view(torch.int32))


def test_what_would_save_little_is_stored_by_each_so_that_memory_holds_the_file(
    ranks: Ranks, folder: str, daemon: DaemonProcess
) -> None:
    ranks.save(f"{folder}/x", [{"t": torch.ones(1024), "own": torch.full((MEBIBYTE,), rank)} for rank in range(2)], shards={})
    sizes = stored_bytes(daemon, f"{folder}/x")
    assert sizes[0] == sizes[1]
