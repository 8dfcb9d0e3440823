"""How long does a save hold training up, when is it safe in each tier, and what does it cost? In turns with the peers, on one state.

Every contender saves the same memory, one after another, in an order that moves on by one each round, so that nobody always follows the
same neighbour. Before each turn the disk is quiet (sync). A contender's first save is kept apart: it makes segments, files and plans. The
second is not counted, since two slots are made by two saves. After the rounds comes one more turn each, for memory, which is not timed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ckptstore_bench import costs
from ckptstore_bench.contenders.interface import Saved
from ckptstore_bench.contenders.process import ContenderProcess
from ckptstore_bench.contests import Contest
from ckptstore_bench.running import Steps

#: Saves before the steady state; the first is reported, the second is not.
WARM_UP_ROUNDS = 4


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
    steps.plan((WARM_UP_ROUNDS + rounds + int(memory)) * len(contest.runners))
    for number in range(-WARM_UP_ROUNDS, rounds):
        changed_bytes = contest.state.change(changed, seed=1000 + number) if changed else 0
        for runner in _rotated(contest.runners, number):
            word = "first save" if number == -WARM_UP_ROUNDS else "warming up" if number < 0 else f"round {number + 1} of {rounds}"
            steps.say(f"{word}: {runner.contender.name}")
            _save(runner, number, found[runner.contender.name], daemon_pid if runner.contender.role == "store" else None)
            if number >= 0:
                found[runner.contender.name].changed_bytes.append(changed_bytes)
            steps.next()
    for runner in contest.runners if memory else ():
        steps.say(f"memory: {runner.contender.name}")
        if runner.contender.role != "limit":
            found[runner.contender.name].peak_bytes = _peak_bytes(runner, rounds, daemon_pid if runner.contender.role == "store" else None)
        steps.next()
    contest.require("ckptstore")
    for runner in contest.runners:
        found[runner.contender.name].why_not = runner.why
    return list(found.values())


def _save(runner: ContenderProcess, number: int, saves: Saves, daemon_pid: int | None) -> None:
    os.sync()
    daemon = costs.tree(daemon_pid) if daemon_pid is not None else []
    daemon_before_s = costs.cpu_s(daemon)
    turn = runner.turn("save", number + WARM_UP_ROUNDS)
    if turn is None:
        return
    if number == -WARM_UP_ROUNDS:
        saves.first = turn.value
    elif number >= 0:
        saves.steady.append(turn.value)
        saves.cpu_s.append(turn.cpu_s)
        if daemon_pid is not None:
            saves.daemon_cpu_s.append(costs.cpu_s(daemon) - daemon_before_s)


def _peak_bytes(runner: ContenderProcess, rounds: int, daemon_pid: int | None) -> int | None:
    """The most that a save holds beyond what the contender held when it had been made, in all its processes."""
    roots = [runner.pid] if daemon_pid is None else [runner.pid, daemon_pid]
    with costs.PeakMemory(roots) as peak:
        turn = runner.turn("save", rounds + WARM_UP_ROUNDS)
    return None if turn is None else max(0, peak.peak_bytes - runner.baseline_bytes)


def _rotated(runners: list[ContenderProcess], number: int) -> list[ContenderProcess]:
    start = number % len(runners)
    return runners[start:] + runners[:start]
