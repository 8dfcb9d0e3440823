"""A save with everything on: guarded by an optimizer that changes its weights at once, and incremental, where nothing but the first of a
folder writes what is frozen."""

from __future__ import annotations

from typing import Any

import numpy as np

from ckptstore_client import PendingCheckpoint, Store
from tests.faults.crash_story import Spoiling, frozen, weights
from tests.faults.fault_store import assert_state, state_of


def save(store: Store, path: str, step: int, *, size_bytes: int = 1 << 20) -> PendingCheckpoint:
    guard = Spoiling(weights(step))
    state = {**state_of(step, size_bytes=size_bytes), "frozen": frozen(), "weights": guard.weights}
    pending = store.save(path, state, step=step, incremental=True, guard=guard)
    guard.step()
    return pending


def assert_saved(found: Any, step: int, *, size_bytes: int = 1 << 20) -> None:
    """It is the state at the call."""
    assert_state(found, step, size_bytes=size_bytes)
    assert np.array_equal(found["frozen"], frozen())
    assert np.array_equal(found["weights"], weights(step))
