"""Ranks agree on a step without a collective call: whatever their pace, all save at the same safe point, or none does."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptstore.errors import DaemonUnavailable
from ckptstore.snapshot_messages import SnapshotAgreement, SnapshotRequest
from ckptstore_client import safe_points
from ckptstore_client.safe_points import SafePoints

REQUEST = SnapshotRequest(request_id="a" * 32, number=1, path="/run", why="a test", ends_job=False)
#: Long after any step that ranks could agree on.
LAST_STEP = 5000


class Ledger:
    """The catalog's part: what every rank has said, decided by the last one's word."""

    def __init__(self, world_size: int) -> None:
        self._lock = threading.Lock()
        self._said: dict[int, int] = {}
        self._world_size = world_size
        self.closed = False

    def say(self, rank: int, holds_at: int) -> SnapshotAgreement:
        with self._lock:
            if len(self._said) < self._world_size and not self.closed:
                self._said[rank] = holds_at
            return self._agreement()

    def look(self) -> SnapshotAgreement:
        with self._lock:
            return self._agreement()

    def _agreement(self) -> SnapshotAgreement:
        whole = len(self._said) == self._world_size
        at_step = max(self._said.values()) if whole else None
        return SnapshotAgreement(ranks=len(self._said), at_step=at_step, closed=self.closed and not whole)


class Rank:
    """A loop and a follower, whose turns a test gives."""

    def __init__(self, ledger: Ledger, rank: int) -> None:
        self.points = SafePoints(lambda request, holds_at: ledger.say(rank, holds_at))
        self.saved_at: list[int] = []
        self.step = 0
        self._ledger = ledger
        self._spoken = False

    def go(self, stride: int) -> None:
        self.step += stride
        if self.points.reach(self.step):
            self.saved_at.append(self.step)

    def follow(self) -> None:
        if not self._spoken:
            self._spoken = True
            self.points.take_up(REQUEST)
        else:
            self.points.heard(REQUEST, self._ledger.look())


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that would wait says at once that it goes further: every order of events is gone through in one thread."""
    monkeypatch.setattr(safe_points, "PATIENCE_S", 0.0)


@settings(max_examples=300, deadline=None)
@given(ranks=st.integers(1, 5), stride=st.integers(1, 7), seed=st.integers(0, 1 << 32))
def test_all_ranks_save_at_the_same_step_whatever_the_order_of_events(ranks: int, stride: int, seed: int) -> None:
    order = random.Random(seed)
    ledger = Ledger(ranks)
    job = [Rank(ledger, number) for number in range(ranks)]
    for rank in job:
        rank.go(stride)
    for _ in range(order.randrange(200)):
        rank = order.choice(job)
        order.choice([lambda: rank.go(stride), rank.follow])()  # noqa: B023
    for rank in job:
        rank.follow()
    while unsaved := [rank for rank in job if not rank.saved_at]:
        slow = min(unsaved, key=lambda rank: rank.step)
        assert slow.step < LAST_STEP * stride
        slow.follow()
        slow.go(stride)
    assert len({tuple(rank.saved_at) for rank in job}) == 1
    assert len(job[0].saved_at) == 1


def test_a_rank_that_never_speaks_keeps_the_others_from_saving_and_not_from_training() -> None:
    ledger = Ledger(2)
    lone = Rank(ledger, 0)
    lone.go(1)
    lone.follow()
    for _ in range(100):
        lone.go(1)
    assert (lone.step, lone.saved_at) == (101, [])


def test_what_is_closed_before_all_have_spoken_is_dropped_by_those_who_had() -> None:
    ledger = Ledger(2)
    job = [Rank(ledger, 0), Rank(ledger, 1)]
    for rank in job:
        rank.go(1)
    job[0].follow()
    ledger.closed = True
    for rank in job:
        rank.follow()
        rank.go(1)
        rank.go(1)
    assert [rank.saved_at for rank in job] == [[], []]


def test_a_loop_waits_where_it_said_it_would_until_the_others_have_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_points, "PATIENCE_S", 60.0)
    ledger = Ledger(2)
    fast, slow = Rank(ledger, 0), Rank(ledger, 1)
    fast.go(1)
    fast.follow()
    loop = threading.Thread(target=_go_on, args=(fast.go, lambda: bool(fast.saved_at)), daemon=True)
    loop.start()
    slow.go(1)
    slow.follow()
    fast.follow()
    loop.join(60)
    while not slow.saved_at:
        slow.go(1)
    assert fast.saved_at == slow.saved_at


def test_a_rank_whose_daemon_is_away_trains_on() -> None:
    def say(request: SnapshotRequest, holds_at: int) -> SnapshotAgreement:
        raise DaemonUnavailable("away")

    points = SafePoints(say)
    points.reach(1)
    with pytest.raises(DaemonUnavailable):
        points.take_up(REQUEST)
    assert [points.reach(step) for step in range(2, 50)] == [[]] * 48


def _go_on(go: Callable[[int], None], done: Callable[[], bool]) -> None:
    while not done():
        go(1)
