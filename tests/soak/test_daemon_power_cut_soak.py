"""The long version of `tests/faults/test_daemon_power_cut.py`: the power fails at each call of the story, with and without the catalog."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.crash_story import check_rebuilt, check_recovered
from tests.faults.power_cut import Survives
from tests.faults.test_daemon_power_cut import Calls, calls, cut_power

__all__ = ["calls"]  # the fixture

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
#: The calls are shared out over so many cases.
CASES = 20


def numbers(calls: Calls, case: int) -> list[int]:
    return list(range(1, len(calls.labels) + 1))[case::CASES]


@pytest.mark.parametrize("survives", [Survives.STRICT, Survives.NAMES_KEPT])
@pytest.mark.parametrize("case", range(CASES))
def test_after_a_power_cut_at_any_call_nothing_is_lost_or_left(case: int, survives: Survives, calls: Calls, tmp_path: Path) -> None:
    for number in numbers(calls, case):
        cut_power(tmp_path / str(number), number, survives, check_recovered)


@pytest.mark.parametrize("case", range(CASES))
def test_after_a_power_cut_at_any_call_the_catalog_can_be_made_again(case: int, calls: Calls, tmp_path: Path) -> None:
    for number in (item for item in numbers(calls, case) if item > calls.at_start):
        cut_power(tmp_path / str(number), number, Survives.STRICT, check_rebuilt)
