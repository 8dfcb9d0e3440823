"""The long version of `tests/faults/test_daemon_kill.py`: many hits of every failpoint, and two hundred random moments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.test_daemon_kill import NAMES, Telling, die_at, die_at_random, telling

__all__ = ["telling"]  # the fixture

pytestmark = pytest.mark.soak
HITS, MOMENTS, PER_CASE = 12, 200, 10


@pytest.mark.parametrize("name", NAMES)
def test_a_daemon_killed_at_many_hits_of_a_failpoint_loses_nothing(name: str, telling: Telling, tmp_path: Path) -> None:
    die_at(name, telling, tmp_path, HITS)


@pytest.mark.parametrize("first", range(0, MOMENTS, PER_CASE))
def test_a_daemon_killed_at_random_moments_loses_nothing(first: int, telling: Telling, tmp_path: Path) -> None:
    die_at_random(first, PER_CASE, telling, tmp_path)
