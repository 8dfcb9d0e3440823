"""Tensors on a device, saved and loaded. Left out of the run where there is no device (`tests/conftest.py`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ckptstore
from ckptstore_bench.ports import free_port
from ckptstore_client import Store
from tests.contract.store_place import WAIT_S, start

pytestmark = pytest.mark.cuda
MIB = 1 << 20


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with start(tmp_path_factory.mktemp("cuda"), free_port()) as process, ckptstore.connect(home=process.home, start=False) as connected:
        yield connected


def state_of(seed: int) -> dict[str, Any]:
    """Large and small ones, several dtypes, strided and tied ones, on the device and beside it."""
    made = torch.Generator("cuda").manual_seed(seed)
    large = torch.randn(10 * MIB, device="cuda", generator=made)
    return {
        "large": large,
        "tied": large,
        "half": torch.randn(1000, 7, device="cuda", generator=made).to(torch.bfloat16),
        "transposed": torch.randn(64, 33, device="cuda", generator=made).t(),
        "small": [torch.full((3,), float(seed + i), device="cuda") for i in range(100)],
        "numbers": torch.arange(seed, seed + 9, device="cuda"),
        "cpu": torch.full((5,), float(seed)),
        "step": seed,
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left.cpu(), right.cpu()) and left.dtype == right.dtype
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def test_what_was_saved_from_a_device_is_loaded_into_host_memory_and_into_a_device(store: Store) -> None:
    for seed in (1, 2, 3):  # the first registers a segment, the second another, the third uses one again
        store.save(f"/plain/{seed}", state_of(seed)).wait("nvme", timeout_s=WAIT_S)
    for seed in (1, 2, 3):
        assert same(store.load(f"/plain/{seed}"), state_of(seed))
        into = state_of(99)
        store.load(f"/plain/{seed}", into=into)
        assert same(into, state_of(seed)) and into["large"].is_cuda and into["tied"] is into["large"]


def test_a_save_waits_for_what_the_device_was_asked_before_and_not_for_what_comes_after(store: Store) -> None:
    values = torch.zeros(16 * MIB, device="cuda")
    for number in range(1, 6):
        for _ in range(50):  # queued, and not over yet
            values += 1
        pending = store.save(f"/order/{number}", {"w": values})
        values.mul_(1)
        pending.wait("nvme", timeout_s=WAIT_S)
        assert torch.equal(store.load(f"/order/{number}")["w"], torch.full((16 * MIB,), 50.0 * number))


def test_the_state_may_change_on_another_stream_when_save_has_returned(store: Store) -> None:
    values, stream = torch.ones(16 * MIB, device="cuda"), torch.cuda.Stream()
    pending = store.save("/streams", {"w": values})
    with torch.cuda.stream(stream):
        values.zero_()
    pending.wait("nvme", timeout_s=WAIT_S)
    assert torch.equal(store.load("/streams")["w"], torch.ones(16 * MIB))


def test_a_guarded_save_is_the_state_at_the_call(store: Store) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2048, 2048), torch.nn.BatchNorm1d(2048), torch.nn.Linear(2048, 2048)).cuda()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for number in range(5):
        before = {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}
        pending = store.save(f"/guard/{number}", {"net": net.state_dict(), "optimizer": optimizer.state_dict()}, guard=optimizer)
        net(torch.randn(64, 2048, device="cuda")).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        pending.wait("nvme", timeout_s=WAIT_S)
        assert same(store.load(f"/guard/{number}")["net"], before)


def test_an_incremental_save_from_a_device_writes_what_changed(store: Store) -> None:
    state = {"frozen": torch.randn(8 * MIB, device="cuda"), "trained": torch.zeros(MIB, device="cuda")}
    for number in range(3):
        state["trained"] += 1
        store.save(f"/less/{number}", state, incremental=True).wait("nvme", timeout_s=WAIT_S)
    for number in range(3):
        assert same(store.load(f"/less/{number}"), {"frozen": state["frozen"], "trained": torch.full((MIB,), number + 1.0)})
