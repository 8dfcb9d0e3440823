"""How long does a drain that failed wait for its next try? Longer each time, up to a bound, and not all at the same moment."""

from __future__ import annotations

from itertools import pairwise
from statistics import median

from hypothesis import given
from hypothesis import strategies as st

from ckptstore_server.drain import FIRST_PAUSE_S, LONGEST_PAUSE_S, pause_after


@given(st.integers(0, 10_000))
def test_a_pause_lies_within_a_quarter_of_what_doubling_gives_and_of_the_longest(tries: int) -> None:
    middle_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(tries, 64))
    assert 0.75 * middle_s <= pause_after(tries) <= 1.25 * middle_s


@given(st.integers(0, 20))
def test_those_that_failed_together_do_not_come_back_together(tries: int) -> None:
    assert len({pause_after(tries) for _ in range(20)}) > 1


def test_each_try_waits_longer_than_the_one_before_until_the_longest() -> None:
    pauses_s = [median(pause_after(tries) for _ in range(101)) for tries in range(12)]
    growing = [pause_s for pause_s in pauses_s if pause_s < 0.7 * LONGEST_PAUSE_S]
    assert len(growing) >= 4
    assert all(later > earlier for earlier, later in pairwise(growing))
    assert pauses_s[-1] > 0.7 * LONGEST_PAUSE_S
