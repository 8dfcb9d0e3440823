"""Waiting for something that must happen: the one loop of all tests that ask again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

#: How long something that must happen may take on a busy machine, in seconds.
PATIENCE_S = 90.0
T = TypeVar("T")


def until(what: str, look: Callable[[], T], *, timeout_s: float = PATIENCE_S, pause_s: float = 0.02) -> T:
    """The first truthy answer of `look`, asked again and again; the condition is the answer, not the time that passed."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}; the last answer was {found!r}"
        time.sleep(pause_s)
    return found
