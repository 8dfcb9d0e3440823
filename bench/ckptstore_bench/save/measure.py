"""How long does a save hold training up, when is it safe in each tier, and what does it cost? In turns with the peers, on one state.

Every contender saves the same memory, one after another, in an order that moves on by one each round, so that nobody always follows the
same neighbour. Its turn is what a training script does, to save again and again: some saves that are not counted, as many as there are
buffers to fill by turns, and one that is. For while the others had theirs, its memory lay idle, and a hypervisor may have taken the pages
away: the next touch then costs 2 µs a page, which says nothing of any contender but how many buffers it has. Before each counted save the
disk is quiet (sync). A contender's first save is kept apart: it makes segments, files and plans. After the rounds comes one more turn
each, for memory, which is not timed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import count

from ckptstore_bench import costs
from ckptstore_bench.cold import own_memory
from ckptstore_bench.contenders.interface import Saved
from ckptstore_bench.contenders.process import ContenderProcess
from ckptstore_bench.contests import SLOTS, Contest
from ckptstore_bench.running import Steps


@dataclass
class Saves:
    """What one contender did. Lists have one entry a round."""

    name: str
    what: str
    role: str
    first: Saved | None = None
    steady: list[Saved] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    daemon_cpu_s: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    changed_bytes: list[int] = field(default_factory=list)
    why_not: str | None = None


def measure(contest: Contest, rounds: int, steps: Steps, *, changed: float = 0.0, memory: bool = True) -> list[Saves]:
    """`changed` is the fraction of the state that changes before each round, for all contenders alike."""
    found = {
        runner.contender.name: Saves(runner.contender.name, runner.contender.what, runner.contender.role) for runner in contest.runners
    }
    store = contest.require("ckptstore")
    turn = store.turn("daemon_pid")
    daemon_pid = None if turn is None else int(turn.value)
    daemons = {runner: daemon_pid if runner.contender.role == "store" else None for runner in contest.runners}
    buffers = {runner: SLOTS if runner.contender.role == "store" else 1 for runner in contest.runners}
    numbers = count()
    steps.plan((1 + rounds + int(memory)) * len(contest.runners))
    for runner in contest.runners:
        steps.say(f"first save: {runner.contender.name}")
        own_memory(2 * contest.state.shape.size_bytes)  # for segments, and for files in the page cache
        found[runner.contender.name].first = _save(runner, next(numbers))
        for _ in range(buffers[runner] - 1):
            _save(runner, next(numbers))
        steps.next()
    for number in range(rounds):
        changed_bytes = contest.state.change(changed, seed=1000 + number) if changed else 0
        for runner in _rotated(contest.runners, number):
            steps.say(f"round {number + 1} of {rounds}: {runner.contender.name}")
            # Where the state changes from round to round, a second save of it has nothing to write: there, one must do.
            for _ in range(0 if changed else buffers[runner]):
                _save(runner, next(numbers))
            _counted_save(runner, next(numbers), found[runner.contender.name], daemons[runner])
            found[runner.contender.name].changed_bytes.append(changed_bytes)
            steps.next()
    for runner in contest.runners if memory else ():
        steps.say(f"memory: {runner.contender.name}")
        if runner.contender.role != "limit":
            found[runner.contender.name].peak_bytes = _peak_bytes(runner, next(numbers), daemons[runner])
        steps.next()
    contest.require("ckptstore")
    for runner in contest.runners:
        found[runner.contender.name].why_not = runner.why
    return list(found.values())


def _save(runner: ContenderProcess, number: int) -> Saved | None:
    turn = runner.turn("save", number)
    return None if turn is None else turn.value


def _counted_save(runner: ContenderProcess, number: int, saves: Saves, daemon_pid: int | None) -> None:
    os.sync()
    daemon = costs.tree(daemon_pid) if daemon_pid is not None else []
    daemon_before_s = costs.cpu_s(daemon)
    turn = runner.turn("save", number)
    if turn is None:
        return
    saves.steady.append(turn.value)
    saves.cpu_s.append(turn.cpu_s)
    if daemon_pid is not None:
        saves.daemon_cpu_s.append(costs.cpu_s(daemon) - daemon_before_s)


def _peak_bytes(runner: ContenderProcess, number: int, daemon_pid: int | None) -> int | None:
    """The most that a save holds beyond what the contender held when it had been made, in all its processes."""
    roots = [runner.pid] if daemon_pid is None else [runner.pid, daemon_pid]
    with costs.PeakMemory(roots) as peak:
        turn = runner.turn("save", number)
    return None if turn is None else max(0, peak.peak_bytes - runner.baseline_bytes)


def _rotated(runners: list[ContenderProcess], number: int) -> list[ContenderProcess]:
    start = number % len(runners)
    return runners[start:] + runners[:start]
