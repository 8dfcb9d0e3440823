"""A guarded save copies while training goes on, and is still exactly the state at the call."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from ckptstore.errors import AlreadyExists, InvalidInput, NotStorable
from ckptstore_client import Store
from ckptstore_client.staging import BoundState
from tests.contract.store_place import WAIT_S, Place
from tests.until import until


class Job:
    """A small training loop with everything that changes between two steps: BatchNorm, two optimizers, an average of the weights."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.BatchNorm1d(256), torch.nn.ReLU(), torch.nn.Linear(256, 8))
        self.average = copy.deepcopy(self.model)
        first, *rest = self.model.parameters()
        self.optimizers = [torch.optim.AdamW(rest, lr=0.1), torch.optim.SGD([first], lr=0.1, momentum=0.9)]
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizers[0], step_size=1)
        for _ in range(2):
            self.step()

    def forward_and_backward(self) -> None:
        self.model(torch.randn(16, 64)).square().mean().backward()

    def step(self) -> None:
        for _ in range(2):  # gradient accumulation
            self.forward_and_backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.schedule.step()
        with torch.no_grad():
            for mean, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(weight, 0.5)

    def state(self) -> dict[str, Any]:
        return {
            "model": dict(self.model.state_dict()),
            "average": dict(self.average.state_dict()),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "rng": torch.get_rng_state(),
        }


def assert_same(found: Any, expected: Any, place: str = "") -> None:
    if isinstance(expected, dict):
        assert list(found) == list(expected), place
        for key in expected:
            assert_same(found[key], expected[key], f"{place}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), place
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{place}/{index}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), place
    else:
        assert found == expected, place


class HeldCopy:
    """The copy of guarded tensors, held back until `go`. Copies in the caller's own thread run as ever."""

    def __init__(self) -> None:
        self.asked, self.go = threading.Event(), threading.Event()
        self.leaves = -1
        self._copy = BoundState.copy

    def __call__(self, bound: BoundState, leaves: Any = None) -> None:
        if threading.current_thread() is not threading.main_thread():
            self.leaves = len(leaves)
            self.asked.set()
            assert self.go.wait(WAIT_S)
        self._copy(bound, leaves)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldCopy]:
    held = HeldCopy()
    monkeypatch.setattr(BoundState, "copy", lambda bound, leaves=None: held(bound, leaves))
    yield held
    held.go.set()


def waits_for_the_copy(held: HeldCopy, action: Callable[[], object]) -> None:
    """`action` ends only after the copy was let go."""
    with ThreadPoolExecutor(1) as other:
        running = other.submit(action)
        assert held.asked.wait(WAIT_S)
        assert not running.done()
        held.go.set()
        running.result(WAIT_S)


def test_a_guarded_snapshot_is_the_state_at_the_call(store: Store, folder: str, held: HeldCopy) -> None:
    job = Job()
    expected = copy.deepcopy(job.state())
    pending = store.save(f"{folder}/a", job.state(), guard=job.optimizers)
    assert held.asked.wait(WAIT_S)
    # Everything but the optimizers' own tensors may change at once: BatchNorm's statistics do in forward, the average by hand.
    job.forward_and_backward()
    for mean in job.average.parameters():
        mean.data.zero_()
    waits_for_the_copy(held, job.step)
    pending.wait("nvme", timeout_s=WAIT_S)
    assert_same(store.load(f"{folder}/a"), expected)


def test_what_the_optimizers_own_and_nothing_else_is_copied_behind(store: Store, folder: str, held: HeldCopy) -> None:
    job = Job()
    store.save(f"{folder}/a", job.state(), guard=job.optimizers)
    assert held.asked.wait(WAIT_S)
    parameters = len(list(job.model.parameters()))
    adam = 3 * (parameters - 1)  # step, exp_avg, exp_avg_sq
    assert held.leaves == parameters + adam + 1  # and SGD's momentum


def test_only_the_guarded_optimizers_tensors_wait(store: Store, folder: str, held: HeldCopy) -> None:
    job = Job()
    expected = copy.deepcopy(job.state())
    pending = store.save(f"{folder}/a", job.state(), guard=job.optimizers[1])
    assert held.asked.wait(WAIT_S)
    assert held.leaves == 2
    job.forward_and_backward()
    job.optimizers[0].step()  # not guarded: it was copied before
    waits_for_the_copy(held, job.optimizers[1].step)
    pending.wait("nvme", timeout_s=WAIT_S)
    assert_same(store.load(f"{folder}/a"), expected)


def test_a_change_by_hand_waits_inside_before_mutation(store: Store, folder: str, held: HeldCopy) -> None:
    job = Job()
    expected = copy.deepcopy(job.state())
    pending = store.save(f"{folder}/a", job.state(), guard=job.optimizers)

    def clip_weights() -> None:
        with pending.before_mutation(), torch.no_grad():
            for weight in job.model.parameters():
                weight.clamp_(-0.01, 0.01)

    waits_for_the_copy(held, clip_weights)
    pending.wait("nvme", timeout_s=WAIT_S)
    assert_same(store.load(f"{folder}/a"), expected)


def test_loading_a_state_into_a_guarded_optimizer_waits(store: Store, folder: str, held: HeldCopy) -> None:
    job = Job()
    expected = copy.deepcopy(job.state())
    older = copy.deepcopy(job.optimizers[0].state_dict())
    pending = store.save(f"{folder}/a", job.state(), guard=job.optimizers)
    waits_for_the_copy(held, lambda: job.optimizers[0].load_state_dict(older))
    pending.wait("nvme", timeout_s=WAIT_S)
    assert_same(store.load(f"{folder}/a"), expected)


def test_an_exception_in_backward_leaves_the_snapshot_whole_and_the_next_step_works(store: Store, folder: str, held: HeldCopy) -> None:
    job = Job()
    expected = copy.deepcopy(job.state())
    pending = store.save(f"{folder}/a", job.state(), guard=job.optimizers)
    loss = job.model(torch.randn(16, 64)).mean()
    loss.register_hook(lambda gradient: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    waits_for_the_copy(held, job.step)
    pending.wait("nvme", timeout_s=WAIT_S)
    assert_same(store.load(f"{folder}/a"), expected)


def test_saving_at_every_step_gives_every_state(store: Store, folder: str) -> None:
    job = Job()
    expected = []
    for number in range(6):
        expected.append(copy.deepcopy(job.state()))
        pending = store.save(f"{folder}/{number}", job.state(), guard=job.optimizers)
        job.step()
    pending.wait("nvme", timeout_s=WAIT_S)
    for number, state in enumerate(expected):
        store.wait(f"{folder}/{number}", "nvme", timeout_s=WAIT_S)
        assert_same(store.load(f"{folder}/{number}"), state)


def test_a_refusal_is_told_at_the_latest_by_wait_and_training_goes_on(store: Store, folder: str) -> None:
    job = Job()
    store.save(f"{folder}/a", {"w": torch.ones(3)}).wait("nvme", timeout_s=WAIT_S)
    with pytest.raises(AlreadyExists):
        store.save(f"{folder}/a", job.state(), guard=job.optimizers).wait(timeout_s=WAIT_S)
    job.step()
    assert set(store.load(f"{folder}/a")) == {"w"}


def test_a_copy_that_fails_ends_the_attempt_and_not_the_training(store: Store, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job, copy_leaves = Job(), BoundState.copy

    def fail_behind(bound: BoundState, leaves: Any = None) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError("no memory for the copy")
        copy_leaves(bound, leaves)

    monkeypatch.setattr(BoundState, "copy", fail_behind)
    pending = store.save(f"{folder}/a", job.state(), guard=job.optimizers)
    job.step()
    with pytest.raises(MemoryError):
        pending.wait(timeout_s=WAIT_S)
    assert pending.status().state == "aborted"
    monkeypatch.undo()
    store.save(f"{folder}/b", job.state(), guard=job.optimizers).wait("nvme", timeout_s=WAIT_S)


@pytest.mark.parametrize("guard", [5, "adam", [torch.nn.Linear(2, 2)]], ids=["a number", "a name", "a module"])
def test_a_guard_that_is_no_optimizer_is_refused(store: Store, folder: str, guard: Any) -> None:
    with pytest.raises(InvalidInput, match="optimizer"):
        store.save(f"{folder}/a", {"w": torch.ones(3)}, guard=guard)
    assert store.ls("/") is not None


def test_a_state_that_cannot_be_stored_is_refused_at_once_also_with_a_guard(store: Store, folder: str) -> None:
    job = Job()
    with pytest.raises(NotStorable, match="hook"):
        store.save(f"{folder}/a", {**job.state(), "hook": print}, guard=job.optimizers)


def test_reserving_makes_and_maps_the_slots_before_the_first_save(store: Store, place: Place, folder: str) -> None:
    state = {"w": torch.ones(3_000_000)}
    assert store.reserve(state).result(WAIT_S) == (0 if place.over_network else 2)
    store.save(f"{folder}/a", state).wait("nvme", timeout_s=WAIT_S)
    assert torch.equal(store.load(f"{folder}/a")["w"], state["w"])


def test_closing_the_store_hands_over_what_was_copied(place: Place, folder: str) -> None:
    with place.connect() as first:
        job = Job()
        expected = copy.deepcopy(job.state())
        first.save(f"{folder}/a", job.state(), guard=job.optimizers)
    with place.connect() as second:
        until("it is published", lambda: second.ls("/t") and folder in [entry.path for entry in second.ls("/t")])
        assert_same(second.load(f"{folder}/a"), expected)
