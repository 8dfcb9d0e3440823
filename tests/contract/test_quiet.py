"""What drains may use of the machine, by what the kernel's counters and training's steps say; time and counters are the test's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from ckptstore_server.pressure import Gauge, Pressure, Reading, job_folders, stall_s
from ckptstore_server.priority import nice_counts, yield_to_others
from ckptstore_server.quiet import FIRST_LOOK_S, LARGEST_DEBT_S, LOOK_S, SLOWDOWN_GOAL, SMALL_BURST_S, QuietBudget, allowed_cpus, burst_s
from ckptstore_server.step_times import ENOUGH_STEPS, StepTimes

SHARE = 0.02
BURST_S = burst_s(2 * SHARE)


class Machine:
    """Two CPUs; time passes by `run`, in which others use some of them and stand waiting for so much of it."""

    cpus = 2

    def __init__(self) -> None:
        self.now = Reading(1000.0, 0.0, 0.0, 0.0, {"job": 0.0})

    def read(self) -> Reading:
        return self.now

    def clock(self) -> float:
        return self.now.at_s

    def run(self, span_s: float, *, others: float = 0.0, cpu: float = 0.0, memory: float = 0.0, job: float = 0.0) -> None:
        now = self.now
        self.now = replace(
            now,
            at_s=now.at_s + span_s,
            others_cpu_s=now.others_cpu_s + others * span_s,
            cpu_stall_s=now.cpu_stall_s + cpu * span_s,
            memory_stall_s=now.memory_stall_s + memory * span_s,
            job_stalls_s={"job": now.job_stalls_s["job"] + job * span_s},
        )


def budget_after(machine: Machine, **load: float) -> QuietBudget:
    """A budget that has looked at the machine twice, under that load."""
    budget = QuietBudget(machine, SHARE, clock=machine.clock)
    budget.wait_s()
    machine.run(max(LOOK_S, FIRST_LOOK_S), **load)
    budget.wait_s()
    return budget


# --- how much -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "allowed"),
    [
        ({}, 2.0),
        ({"cpu": 0.9}, 2.0),  # nobody else is there: the drains wait for each other
        ({"others": 0.1}, 2.0),
        ({"others": 0.5}, 1.0),
        ({"others": 1.4}, 0.1),
        ({"others": 1.6}, 0.04),  # what they leave over are gaps between their steps
        ({"others": 1.99}, 0.04),
        ({"others": 1.0, "cpu": 0.3}, 0.04),  # a drain has taken one CPU, and training wants it back
        ({"memory": 0.2}, 0.04),
        ({"job": 0.5}, 0.04),
    ],
)
def test_drains_may_use_what_others_leave_over_and_little_where_others_wait(load: dict[str, float], allowed: float) -> None:
    assert budget_after(Machine(), **load).allowed_cpus == pytest.approx(allowed, abs=0.011)


def test_until_the_machine_was_looked_at_twice_drains_are_quiet() -> None:
    machine = Machine()
    budget = QuietBudget(machine, SHARE, clock=machine.clock)
    budget.wait_s()
    assert budget.allowed_cpus == pytest.approx(0.04)


def test_an_old_reading_tells_nothing_about_now() -> None:
    machine = Machine()
    budget = budget_after(machine)
    assert budget.allowed_cpus == 2.0
    machine.run(600.0, others=2.0)  # nothing was drained meanwhile, and nobody looked
    budget.wait_s()
    assert budget.allowed_cpus == pytest.approx(0.04)


# --- the debt -------------------------------------------------------------------------------------------------------------------


def test_on_a_busy_machine_drains_use_their_share_and_no_more() -> None:
    machine = Machine()
    budget = budget_after(machine, others=2.0)
    begin_s, used_s = machine.clock(), 0.0
    while machine.clock() < begin_s + 100.0:
        budget.charge(0.01)
        used_s += 0.01
        machine.run(0.01, others=2.0)
        while (rest_s := budget.wait_s()) > 0:
            machine.run(min(rest_s, 0.25), others=2.0)
    assert used_s == pytest.approx(100.0 * SHARE * machine.cpus + BURST_S, rel=0.05)


def test_a_small_checkpoint_passes_at_once_and_of_small_objects_many() -> None:
    budget = budget_after(Machine(), others=2.0)
    budget.charge(BURST_S)
    assert budget.wait_s() == 0.0
    budget.charge(SMALL_BURST_S - BURST_S)
    assert budget.wait_s() > 0.0
    assert budget.wait_s(small=True) == 0.0
    budget.charge(0.04)
    assert budget.wait_s(small=True) == pytest.approx(1.0)


def test_when_training_ends_drains_go_on_at_once() -> None:
    machine = Machine()
    budget = budget_after(machine, others=2.0)
    budget.charge(2.0)
    assert budget.wait_s() == pytest.approx((2.0 - BURST_S) / 0.04)
    machine.run(LOOK_S)
    assert budget.wait_s() < 1.0


def test_what_a_deadline_hurried_is_not_paid_for_by_what_comes_after_it() -> None:
    budget = budget_after(Machine(), others=2.0)
    budget.charge(1000.0)
    assert budget.wait_s() == pytest.approx((LARGEST_DEBT_S - BURST_S) / 0.04)


def test_what_is_more_urgent_suspends_the_rest() -> None:
    budget = budget_after(Machine(), others=2.0)
    budget.charge(5.0)
    budget.suspended = True
    assert budget.wait_s() == 0.0


# --- training's steps -----------------------------------------------------------------------------------------------------------


def test_steps_that_are_longer_beside_drains_make_them_quieter_until_the_goal_is_met() -> None:
    machine = Machine()
    budget = budget_after(machine)
    slowdown_per_cpu = 1.0  # whatever they contend for: no counter shows it
    for _ in range(20):
        used = budget.allowed_cpus
        budget.aim(used, slowdown_per_cpu * used)
        assert budget.allowed_cpus >= SHARE * machine.cpus / 4
    assert slowdown_per_cpu * budget.allowed_cpus <= SLOWDOWN_GOAL * 1.01
    for _ in range(20):
        budget.aim(budget.allowed_cpus, 0.0)
    assert budget.allowed_cpus == 2.0


def test_what_training_told_of_itself_counts_no_longer_when_it_has_stopped() -> None:
    machine = Machine()
    budget = budget_after(machine, others=1.0)
    budget.aim(0.5, 0.5)
    assert budget.allowed_cpus == pytest.approx(SLOWDOWN_GOAL)
    for _ in range(3):
        machine.run(LOOK_S)
        budget.wait_s()
        assert budget.allowed_cpus == 2.0, "nobody trains any more: the last checkpoint goes down at once"
    machine.run(LOOK_S, others=1.1)
    budget.wait_s()
    assert budget.allowed_cpus == pytest.approx(SLOWDOWN_GOAL), "and now somebody does again"


def ends_of(begin_s: float, durations_s: list[float]) -> list[float]:
    ends = [begin_s]
    for duration_s in durations_s:
        ends.append(ends[-1] + duration_s)
    return ends


def test_the_slow_down_is_that_of_the_steps_beside_drains() -> None:
    steps = StepTimes()
    ends_s = ends_of(100.0, [1.0] * 10 + [1.3] * 10)
    for second in range(13):
        steps.note_use(110.0 + second, 0.1 * second)
    finding = steps.heard("session", ends_s)
    assert finding is not None
    assert finding.slowdown == pytest.approx(0.3)
    assert finding.used_cpus == pytest.approx(0.1, rel=0.3)


def test_a_quiet_median_is_remembered_for_a_session_that_is_never_quiet_again() -> None:
    steps = StepTimes()
    assert steps.heard("session", ends_of(100.0, [1.0] * ENOUGH_STEPS)) is None
    for second in range(20):
        steps.note_use(200.0 + second, 0.5 * second)
    finding = steps.heard("session", ends_of(200.0, [1.5] * 10))
    assert finding is not None
    assert finding.slowdown == pytest.approx(0.5)
    assert steps.heard("another", ends_of(200.0, [1.5] * 10)) is None


def test_a_step_beside_a_save_is_not_blamed_on_drains() -> None:
    """Ten steps alone, ten with a save and a drain beside them, ten with the drain alone: only these say what drains cost."""
    clock = iter([129.5])
    steps = StepTimes(clock=lambda: next(clock))
    assert steps.heard("session", ends_of(100.0, [1.0] * 10)) is None
    for second in range(40):
        steps.note_use(110.0 + second, 0.1 * second)
    later = ends_of(110.0, [2.0] * 10) + ends_of(131.0, [1.1] * 9)
    with steps.saving(since_s=110.5):
        assert steps.heard("session", later) is None, "the save is not over: no step is told from its burden"
    found = steps.heard("session", later)
    assert found is not None
    assert found.slowdown == pytest.approx(0.1)


def test_too_few_steps_say_nothing() -> None:
    steps = StepTimes()
    assert steps.heard("session", []) is None
    assert steps.heard("session", ends_of(100.0, [1.0] * (ENOUGH_STEPS - 1))) is None


# --- the kernel's files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "pressure").mkdir()
    (tmp_path / "self").mkdir()
    return tmp_path


def write_machine(proc: Path, *, busy_ticks: int, cpu_us: int, memory_us: int) -> None:
    lines = [f"cpu{number} {busy_ticks} 0 0 99 99 0 0 0 0 0" for number in range(4)]
    (proc / "stat").write_text("\n".join(["cpu  1 1 1 1 1 1 1 1 0 0", *lines, "intr 5"]))
    for name, total in (("cpu", cpu_us), ("memory", memory_us)):
        (proc / "pressure" / name).write_text(f"some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\nfull avg10=0 total=7\n")


def test_the_gauge_counts_our_cpus_without_our_own_time(proc: Path) -> None:
    ticks, own = os.sysconf("SC_CLK_TCK"), iter([1.0, 1.5])
    clock = iter([10.0, 12.0])
    gauge = Gauge(proc=proc, cpus={1, 3}, clock=lambda: next(clock), own_cpu_s=lambda: next(own))
    write_machine(proc, busy_ticks=0, cpu_us=0, memory_us=0)
    first = gauge.read()
    write_machine(proc, busy_ticks=ticks, cpu_us=1_000_000, memory_us=500_000)
    pressure = Pressure.between(first, gauge.read())
    assert pressure.others_cpus == pytest.approx((2 * 1.0 - 0.5) / 2)
    assert (pressure.cpu, pressure.memory, pressure.jobs) == (0.5, 0.25, 0.0)


def test_a_machine_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    reading = Gauge(proc=tmp_path, cpus={0}).read()
    assert reading.cpu_stall_s == 0.0
    (tmp_path / "odd").write_text("some total=none\n")
    assert stall_s(tmp_path / "odd") == 0.0
    assert stall_s(tmp_path) == 0.0


def test_a_jobs_own_cgroup_tells_of_its_pressure_and_ours_does_not(proc: Path, tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    for pid, path in (("self", "/daemon"), ("7", "/job"), ("8", "/daemon"), ("9", "/gone")):
        (proc / pid).mkdir(exist_ok=True)
        (proc / pid / "cgroup").write_text(f"4:memory:/other\n0::{path}\n")
    for name in ("daemon", "job"):
        (root / name).mkdir(parents=True)
        (root / name / "cpu.pressure").write_text("some avg10=0 total=2000000\n")
    folders = job_folders([7, 8, 9, 10], proc=proc, roots=[root, tmp_path / "none"])
    assert folders == {root / "job"}
    gauge = Gauge(proc=proc, cpus={0})
    gauge.job_folders = folders
    assert gauge.read().job_stalls_s[str(root / "job" / "cpu.pressure")] == 2.0


def test_a_job_that_came_or_went_between_two_readings_is_not_counted() -> None:
    earlier = Reading(0.0, 0.0, 0.0, 0.0, {"gone": 5.0})
    assert Pressure.between(earlier, Reading(1.0, 0.0, 0.0, 0.0, {"new": 50.0})).jobs == 0.0


def test_nice_is_said_not_to_count_where_sessions_are_scheduled_apart(proc: Path) -> None:
    assert nice_counts(proc)
    (proc / "sys/kernel").mkdir(parents=True)
    (proc / "sys/kernel/sched_autogroup_enabled").write_text("1\n")
    (proc / "self/autogroup").write_text("/autogroup-17 nice 0\n")
    assert not nice_counts(proc)
    (proc / "sys/kernel/sched_autogroup_enabled").write_text("0\n")
    assert nice_counts(proc)


def test_a_thread_that_yields_leaves_the_others_as_they_are() -> None:
    """And its children inherit it; `ionice` reads back what the kernel took."""
    seen: list[int | str] = []

    def work() -> None:
        yield_to_others(7)
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        asked = subprocess.run(["ionice", "-p", str(threading.get_native_id())], capture_output=True, text=True, check=True)
        seen.append(asked.stdout.strip())

    before = os.getpriority(os.PRIO_PROCESS, 0)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [max(7, before), "idle"]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_allowance_of_one_takes_all_restraint_away() -> None:
    assert allowed_cpus(Pressure(2.0, 1.0, 1.0, 1.0), 2, 1.0) == 2.0


def test_the_client_tells_the_steps_of_any_torch_optimizer() -> None:
    code = """
import torch
from ckptstore_client.step_times import steps_since_last_asked
parameter = torch.nn.Parameter(torch.zeros(2)); parameter.grad = torch.ones(2)
optimizer = torch.optim.SGD([parameter], lr=0.1)
optimizer.step()
assert steps_since_last_asked() == []  # nobody listened yet
for _ in range(3): optimizer.step()
told = steps_since_last_asked()
assert len(told) == 3 and told == sorted(told), told
optimizer.step()
assert steps_since_last_asked()[0] == told[-1]  # so that the first step has a beginning
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
