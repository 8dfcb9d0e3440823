"""How fast does the state come back? Every contender loads it in turns, each from its own copy in the same place, cold or warm alike.

The clock stops when a byte of every page of the result was looked at, since some loaders only map their file. The first round is a warm-up,
in which what came is compared, bit by bit, with what was saved. After the rounds comes one load each for memory, which is not timed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ckptstore_bench import costs
from ckptstore_bench.contenders.process import ContenderProcess
from ckptstore_bench.contests import Contest
from ckptstore_bench.load.source import Source, clear_above, put_there
from ckptstore_bench.running import Steps


@dataclass
class Loads:
    """What one contender did. Lists have one entry a round."""

    name: str
    what: str
    role: str
    load_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    daemon_cpu_s: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    why_not: str | None = None


def measure(contest: Contest, source: Source, rounds: int, steps: Steps, *, memory: bool = True) -> list[Loads]:
    contest.require("ckptstore")
    contest.require("ckptstore into")
    runners = [runner for runner in contest.runners if runner.why is None]
    found = {
        runner.contender.name: Loads(runner.contender.name, runner.contender.what, runner.contender.role) for runner in contest.runners
    }
    steps.plan((rounds + 2 + int(memory)) * len(runners))
    put_there(contest, source)
    files: dict[str, list[Path]] = {}
    for runner in runners:
        steps.say(f"preparing {runner.contender.name}")
        prepared = runner.turn("prepare")
        files[runner.contender.name] = [] if prepared is None else prepared.value
        steps.next()
    os.sync()
    for number in range(-1, rounds):
        for runner in _rotated(runners, number):
            steps.say(f"{'warming up' if number < 0 else f'round {number + 1} of {rounds}'}: {runner.contender.name}")
            _load(contest, source, runner, found[runner.contender.name], files[runner.contender.name], keep=number >= 0)
            steps.next()
    for runner in runners if memory else ():
        steps.say(f"memory: {runner.contender.name}")
        if runner.contender.role != "limit":
            with costs.PeakMemory([runner.pid]) as peak:
                _load(contest, source, runner, found[runner.contender.name], files[runner.contender.name], keep=False)
            found[runner.contender.name].peak_bytes = max(0, peak.peak_bytes - runner.baseline_bytes)
        steps.next()
    contest.require("ckptstore")
    contest.require("ckptstore into")
    for runner in contest.runners:
        found[runner.contender.name].why_not = runner.why
    return list(found.values())


def _load(contest: Contest, source: Source, runner: ContenderProcess, loads: Loads, files: list[Path], *, keep: bool) -> None:
    if runner.contender.name == "fio":
        turn = runner.turn("read_s")
        if turn is not None and keep:
            loads.load_s.append(turn.value)
        return
    is_store = runner.contender.role == "store"
    if is_store:
        files = clear_above(contest, source)
    daemon_pid = contest.workspace.daemon_pid() if is_store else None
    daemon = costs.tree(daemon_pid) if daemon_pid is not None else []
    daemon_before_s = costs.cpu_s(daemon)
    compare_with = None if keep else (contest.state.path, contest.state.shape)
    turn = runner.turn("timed_load", files, source.is_cold, compare_with)
    if turn is None or not keep:
        return
    loads.load_s.append(turn.value["load"])
    loads.cpu_s.append(turn.value["cpu"])
    if is_store:
        loads.daemon_cpu_s.append(costs.cpu_s(daemon) - daemon_before_s)


def _rotated(runners: list[ContenderProcess], number: int) -> list[ContenderProcess]:
    start = number % len(runners)
    return runners[start:] + runners[:start]
