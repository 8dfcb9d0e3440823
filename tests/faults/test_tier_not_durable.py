"""A tier that is not durable holds what was recalled, and nothing else: nobody waits for it, and what lies there goes like all else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.errors import InvalidInput
from tests.faults.fault_store import FaultStore, assert_state, objects_below, posix_tier, state_of, verified
from tests.until import until

STATE_BYTES = 1 << 20
CAPACITY_BYTES = 8 << 20


@pytest.fixture
def place(tmp_path: Path) -> Iterator[FaultStore]:
    """Nothing can be opened in the durable tier: each read recalls."""
    marks = {"high_water": 0.4, "low_water": 0.2}
    tiers = [
        posix_tier("scratch", tmp_path / "scratch", durable=False, capacity=CAPACITY_BYTES, **marks),
        {"name": "object", "kind": "object", "url": f"file://{tmp_path / 'object'}"},
    ]
    with FaultStore(tmp_path / "home", tiers) as place:
        yield place.start()


def saved(place: FaultStore, count: int) -> None:
    """So many checkpoints, which no memory holds any more."""
    with place.connect() as store:
        for number in range(count):
            store.save(f"/run/{number}", state_of(number, size_bytes=STATE_BYTES)).wait("object", timeout_s=60)
    place.daemon.kill()
    place.start()


def recalled(place: FaultStore) -> list[Path]:
    return objects_below(place.root("scratch"))


def test_it_is_filled_by_recalls_alone_and_a_removal_empties_it(place: FaultStore) -> None:
    saved(place, 1)
    assert recalled(place) == []
    store = place.connect()
    assert_state(store.load("/run/0"), 0, size_bytes=STATE_BYTES)
    until("it was recalled", lambda: recalled(place))
    assert store.stat("/run/0").durability == ["object"]
    store.rm("/run/0")
    until("its bytes went", lambda: not recalled(place))


def test_it_is_kept_below_its_mark(place: FaultStore) -> None:
    saved(place, 6)
    store = place.connect()
    for number in range(6):
        assert_state(store.load(f"/run/{number}"), number, size_bytes=STATE_BYTES)
    until("what was recalled first has given way", lambda: 0 < len(recalled(place)) <= 3)
    for number in range(6):
        assert_state(store.load(f"/run/{number}"), number, size_bytes=STATE_BYTES)
    assert verified(store) == []


def test_a_recall_that_a_crash_cut_short_is_finished(place: FaultStore) -> None:
    saved(place, 1)
    place.daemon.kill()
    place.start(failpoints="recall.before_put=kill")
    with pytest.raises(Exception):  # noqa: B017 - the daemon dies of it
        place.connect().load("/run/0")
    place.start()
    until("the recall was finished", lambda: recalled(place))
    assert verified(place.connect()) == []


def test_nobody_can_wait_for_it(place: FaultStore) -> None:
    store = place.connect()
    pending = store.save("/run/0", state_of(0))
    for wait in (lambda: pending.wait("scratch", timeout_s=1), lambda: store.wait("/run/0", "scratch", timeout_s=1)):
        with pytest.raises(InvalidInput, match="no durable tier 'scratch'"):
            wait()
    pending.wait("object", timeout_s=60)
