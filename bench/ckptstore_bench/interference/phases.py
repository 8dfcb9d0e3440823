"""The same steps saving every k steps, saving so with `guard=`, while a save is written, and while it drains; around each, alone.

A phase is held against the steps alone right before and right after it, half as many each, so that a machine that gets slower or faster
meanwhile does so for both. A phase begins when nothing drains, and ends when nothing does: one's work is not another's burden.

Steps are timed one by one. A save lies within the step before which it is called. In the two phases behind a save, saves lie between steps
and are not counted, and a new one is made whenever the last is done with. A step is `writing` if the first durable tier had not all of the
save when the step began, and `draining` if it had, and the deepest tier had not. Training goes on through both, so that the daemon sees no
idle machine in between; a save that is over within a step is counted by that step.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import ckptstore
from ckptstore_bench.interference.training import Training
from ckptstore_bench.running import Steps
from ckptstore_client.pending import PendingCheckpoint

Phase = Literal["saving", "guarded", "writing", "draining"]
PHASES: tuple[Phase, ...] = ("saving", "guarded", "writing", "draining")
WAIT_S = 3600.0
#: Before the first phase: caches, allocators, segments and their mappings.
WARM_UP_STEPS = 3
WARM_UP_SAVES = 2


@dataclass
class PhaseTimes:
    """One phase in one round: each step's seconds, those of the steps alone around it, and what else was seen."""

    steps_s: list[float] = field(default_factory=list)
    alone_s: list[float] = field(default_factory=list)
    stalls_s: list[float] = field(default_factory=list)
    #: saves that were written, or drained, while steps ran
    done: int = 0

    def mean_slow_down(self) -> float:
        """1.0: twice as slow."""
        return statistics.fmean(self.steps_s) / statistics.fmean(self.alone_s) - 1

    def slow_down(self, percent: float) -> float:
        """Of the step at that percentile."""
        return percentile(self.steps_s, percent) / percentile(self.alone_s, percent) - 1


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


Rounds = list[dict[Phase, PhaseTimes]]


class Interference:
    def __init__(self, training: Training, store: ckptstore.Store, *, steps: int, every: int, first: str, deepest: str) -> None:
        """`first`, `deepest`: the durable tiers between which a save drains."""
        self._training = training
        self._store = store
        self._steps = steps
        self._every = every
        self._first, self._deepest = first, deepest
        self._saves = 0

    def measure(self, rounds: int, phases: Sequence[Phase], progress: Steps) -> Rounds:
        progress.say("warming up")
        for _ in range(WARM_UP_SAVES):
            self._finish([self._save()])
        for _ in range(WARM_UP_STEPS):
            self._training.step()
        progress.plan(rounds * len(phases))
        found: Rounds = []
        for number in range(rounds):
            start = number % len(phases)
            times: dict[Phase, PhaseTimes] = {}
            before_s = self._alone()
            for phase in (*phases[start:], *phases[:start]):
                progress.say(f"round {number + 1} of {rounds}: {phase}")
                times[phase] = self._behind(phase) if phase in ("writing", "draining") else self._saving(guard=phase == "guarded")
                after_s = self._alone()
                times[phase].alone_s = before_s + after_s
                before_s = after_s
                progress.next()
            found.append(times)
        return found

    def _alone(self) -> list[float]:
        return [self._training.step() for _ in range(-(-self._steps // 2))]

    def _saving(self, *, guard: bool) -> PhaseTimes:
        times, pending = PhaseTimes(), []

        def save() -> None:
            pending.append(self._save(guard=guard))

        for number in range(self._steps):
            times.steps_s.append(self._training.step(save if number % self._every == 0 else None))
        self._finish(pending)
        times.stalls_s = [handle.stall_s["stall"] for handle in pending]
        return times

    def _behind(self, phase: Phase) -> PhaseTimes:
        """Steps while saves are on their way: all until the first durable tier has them, or those from there to the deepest."""
        times = PhaseTimes()
        while len(times.steps_s) < self._steps:
            way = _Way(self._save(), self._first, self._deepest)
            over = way.written if phase == "writing" else way.drained
            counted: list[float] = []
            while len(times.steps_s) + len(counted) < self._steps and not (counted and over.is_set()):
                counts = phase == "writing" or way.written.is_set()
                step_s = self._training.step()
                if counts or over.is_set():
                    counted.append(step_s)
            times.done += over.is_set()
            times.steps_s += counted
            way.thread.join(WAIT_S)
            self._finish([way.pending])
        return times

    def _save(self, *, guard: bool = False) -> PendingCheckpoint:
        self._saves += 1
        path = f"/interference/step-{self._saves:06d}"
        return self._store.save(path, self._training.state, step=self._saves, guard=self._training.optimizer if guard else None)

    def _finish(self, pending: Sequence[PendingCheckpoint]) -> None:
        """Until nothing is under way, and the space is free again."""
        for handle in pending:
            handle.wait(self._deepest, timeout_s=WAIT_S)
            self._store.rm(handle.path)


class _Way:
    """Notices, in a thread that sleeps in a socket, how far down a save has come."""

    def __init__(self, pending: PendingCheckpoint, first: str, deepest: str) -> None:
        self.pending = pending
        self.written, self.drained = threading.Event(), threading.Event()
        self._tiers = {first: self.written, deepest: self.drained} if first != deepest else {first: self.written}
        self.thread = threading.Thread(target=self._wait, name="bench-way", daemon=True)
        self.thread.start()

    def _wait(self) -> None:
        try:
            for tier, reached in self._tiers.items():
                self.pending.wait(tier, timeout_s=WAIT_S)
                reached.set()
        except ckptstore.CkptStoreError:
            pass  # whoever asks for the end of this save gets the error itself
        finally:
            self.written.set()
            self.drained.set()
