"""Is what was published in a tier in time? The pace that a deadline asks for, the alarm, and the lane that heeds both.

Time is the test's.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import pytest

from ckptstore.catalog.model import Waiting
from ckptstore_server.deadline import SPARE, Plan, alarm, judged_over_s, plan
from ckptstore_server.lane import CalledOff, Lane
from ckptstore_server.pressure import Reading
from ckptstore_server.quiet import QuietBudget, burst_s
from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.paced import PacedSource, in_two_steps
from ckptstore_tiers.scratch import ScratchPool
from ckptstore_tiers.sources import MemorySource

MIB = 1 << 20


# --- the plan -------------------------------------------------------------------------------------------------------------------


def test_the_pace_is_that_of_the_worst_prefix_of_the_queue() -> None:
    waiting = [Waiting(10.0, 90), Waiting(5.0, 10), Waiting(0.0, 1000)]
    assert plan(waiting, 0, 100.0).needed_bytes_s == pytest.approx(1100 / 100)
    assert plan([Waiting(90.0, 900), Waiting(0.0, 50)], 0, 100.0).needed_bytes_s == pytest.approx(90)


def test_the_pace_rises_as_the_deadline_nears_and_is_boundless_behind_it() -> None:
    paces = [plan([Waiting(age_s, 1000)], 0, 100.0).needed_bytes_s for age_s in (0.0, 50.0, 90.0, 99.0, 100.0, 200.0)]
    assert paces == sorted(paces)
    assert paces[:4] == pytest.approx([10, 20, 100, 1000])
    assert paces[4:] == [math.inf, math.inf]


def test_what_is_under_way_needs_no_pace_any_more() -> None:
    assert plan([Waiting(50.0, 1000)], 800, 100.0).needed_bytes_s == pytest.approx(4)
    assert plan([Waiting(50.0, 1000)], 1000, 100.0).needed_bytes_s == 0


def test_nothing_that_waits_needs_nothing() -> None:
    assert plan([], 0, 100.0) == Plan()
    assert alarm(Plan(), within_s=100.0, reached_bytes_s=0.0, limit_bytes_s=1) is None


# --- the alarm ------------------------------------------------------------------------------------------------------------------


def alarm_of(age_s: float, *, reached: float, limit: int | None = None) -> tuple[str, float] | None:
    found = alarm(plan([Waiting(age_s, 1_000_000)], 0, 100.0), within_s=100.0, reached_bytes_s=reached, limit_bytes_s=limit)
    return None if found is None else (found.kind, found.late_s)


def test_a_tier_that_keeps_up_raises_no_alarm() -> None:
    assert alarm_of(60.0, reached=25_000.0) is None


def test_a_tier_that_has_just_begun_is_not_judged() -> None:
    assert alarm_of(judged_over_s(100.0) - 1, reached=0.0) is None
    assert alarm_of(judged_over_s(100.0) + 1, reached=0.0) == ("at risk", 0.0)


def test_a_bandwidth_limit_that_cannot_meet_the_deadline_is_told_from_the_start() -> None:
    assert alarm_of(0.0, reached=0.0, limit=9_000) == ("at risk", 0.0)
    assert alarm_of(0.0, reached=0.0, limit=11_000) is None


def test_a_missed_deadline_says_by_how_much() -> None:
    assert alarm_of(130.0, reached=1e9) == ("late", 30.0)


def test_an_alarm_says_what_would_be_needed() -> None:
    found = alarm(plan([Waiting(50.0, 100_000_000)], 0, 100.0), within_s=100.0, reached_bytes_s=5e5, limit_bytes_s=None)
    assert found is not None
    assert found.needed_bytes_s == 2e6
    assert found.what == "will be late: 100.0 MB need 2.0 MB/s to be in time, but 0.5 MB/s go"


# --- the lane -------------------------------------------------------------------------------------------------------------------


class BusyMachine:
    """Two CPUs that others keep busy; a block costs a hundredth of a CPU second; time passes by resting."""

    cpus = 2

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.cpu_s = 0.0
        self.others_cpus = 2.0
        self.rests = 0

    def read(self) -> Reading:
        return Reading(self.now_s, self.others_cpus * self.now_s, 0.0, 0.0)

    def clock(self) -> float:
        return self.now_s

    def cpu_clock(self) -> float:
        self.cpu_s += 0.01
        return self.cpu_s

    def rest(self, condition: threading.Condition, span_s: float) -> None:
        self.now_s += span_s
        self.rests += 1

    def lane(self, **settings: int) -> Lane:
        budget = QuietBudget(self, 0.02, clock=self.clock)
        return Lane(budget, clock=self.clock, cpu_clock=self.cpu_clock, rest=self.rest, **settings)


def seconds_for(machine: BusyMachine, lane: Lane, blocks: int, *, quietly: bool = True, each: Callable[[], None] = lambda: None) -> float:
    """How long so many blocks take on their way."""
    begin_s = machine.now_s
    source = MemorySource(bytes(BLOCK_BYTES) * blocks)
    with lane.moving("object", source.size_bytes, quietly=quietly) as movement, ScratchPool().borrow() as scratch:
        paced = PacedSource(source, movement)
        for index in range(blocks):
            paced.block(index, scratch)
            each()
    return machine.now_s - begin_s


def test_on_a_busy_machine_blocks_rest_and_on_an_idle_one_they_do_not() -> None:
    machine = BusyMachine()
    assert seconds_for(machine, machine.lane(), 60) == pytest.approx((60 * 0.01 - burst_s(0.04)) / 0.04, rel=0.2)
    idle = BusyMachine()
    idle.others_cpus = 0.0
    assert seconds_for(idle, idle.lane(), 60) < 3.0


def test_of_a_put_in_two_steps_reading_rests_and_writing_keeps_the_limit() -> None:
    """A tier that compresses: what is read counts as moved, what is written counts against the limit."""
    machine = BusyMachine()
    lane, source = machine.lane(limit_bytes_s=BLOCK_BYTES), MemorySource(bytes(BLOCK_BYTES) * 60)
    with lane.moving("object", source.size_bytes, quietly=True) as movement, ScratchPool().borrow() as scratch:
        read, paced = in_two_steps(PacedSource(source, movement))
        for index in range(60):
            read.block(index, scratch)
        assert machine.now_s - 1000.0 == pytest.approx((60 * 0.01 - burst_s(0.04)) / 0.04, rel=0.2)
        assert lane.moved_bytes() == 60 * BLOCK_BYTES
        begin_s, written = machine.now_s, paced(source)
        for index in range(10):
            written.block(index, scratch)
        assert machine.now_s - begin_s == pytest.approx(9, abs=1)
        assert lane.moved_bytes() == 60 * BLOCK_BYTES
        lane.call_off("object")
        with pytest.raises(CalledOff):
            written.block(10, scratch)


def test_what_somebody_waits_for_does_not_rest() -> None:
    machine = BusyMachine()
    assert seconds_for(machine, machine.lane(), 100, quietly=False) == 0.0


def test_a_deadline_lets_through_what_it_needs_and_no_more() -> None:
    machine = BusyMachine()
    lane = machine.lane()
    lane.follow(Plan(needed_bytes_s=10 * BLOCK_BYTES / SPARE, oldest_age_s=1.0, waiting_bytes=1))  # quiet alone would be four a second
    assert seconds_for(machine, lane, 200) == pytest.approx(20, rel=0.1)


def test_a_missed_deadline_lets_everything_through() -> None:
    machine = BusyMachine()
    lane = machine.lane()
    lane.follow(Plan(needed_bytes_s=math.inf, oldest_age_s=1.0, waiting_bytes=1))
    assert seconds_for(machine, lane, 100) == 0.0


def test_the_bandwidth_limit_holds_also_behind_the_deadline() -> None:
    machine = BusyMachine()
    lane = machine.lane(limit_bytes_s=BLOCK_BYTES)
    lane.follow(Plan(needed_bytes_s=math.inf, oldest_age_s=1.0, waiting_bytes=1))
    assert seconds_for(machine, lane, 10) == pytest.approx(9, abs=1.1)


def test_the_lane_knows_what_is_under_way() -> None:
    machine = BusyMachine()
    lane = machine.lane()
    seen: list[int] = []
    seconds_for(machine, lane, 3, each=lambda: seen.append(lane.moved_bytes()))
    assert seen == [BLOCK_BYTES, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES]
    assert lane.moved_bytes() == 0


@pytest.mark.parametrize("how", ["call off", "close"])
def test_a_movement_that_rests_is_called_off_at_once(how: str) -> None:
    machine = BusyMachine()
    lane = machine.lane(limit_bytes_s=1)  # the next block would pass in a month

    def rest(condition: threading.Condition, span_s: float) -> None:
        machine.rests += 1
        assert machine.rests < 10, "it rests on"
        lane.close() if how == "close" else lane.call_off("object")

    lane._rest = rest
    with pytest.raises(CalledOff):
        seconds_for(machine, lane, 5)
    assert lane.moved_bytes() == 0
    if how == "close":
        with pytest.raises(CalledOff):
            seconds_for(machine, lane, 1)
    else:
        lane.call_off("another")  # which is not under way: nothing
