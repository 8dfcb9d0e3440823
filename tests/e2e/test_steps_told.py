"""The steps of a trainer reach the daemon with its saves, and what they say reaches the budget of the drains."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.faults.fault_store import FaultStore, posix_tier

USED_CPUS, SLOWDOWN = 0.5, 0.25


@dataclass
class Noted:
    """Rigging: what was heard of steps is a line in a file, and says that they were longer; what is aimed at is another."""

    file: Path

    def __call__(self, stack: ExitStack) -> None:
        from ckptstore_server.quiet import QuietBudget
        from ckptstore_server.step_times import Finding, StepTimes

        def heard(times: StepTimes, session: str, ends_s: Sequence[float]) -> Finding:
            self._note(heard=list(ends_s))
            return Finding(USED_CPUS, SLOWDOWN)

        def aim(budget: QuietBudget, used_cpus: float, slowdown: float) -> None:
            self._note(aimed=[used_cpus, slowdown])

        StepTimes.heard = heard  # type: ignore[method-assign, assignment]
        QuietBudget.aim = aim  # type: ignore[method-assign]

    def _note(self, **what: Any) -> None:
        with self.file.open("a", encoding="utf-8") as out:
            print(json.dumps(what), file=out)

    def noted(self, name: str) -> list[Any]:
        return [line[name] for line in map(json.loads, self.file.read_text("utf-8").splitlines()) if name in line]


def test_a_trainers_steps_are_told_with_its_save_and_quieten_the_drains(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    rigging = Noted(tmp_path / "noted")
    with FaultStore(tmp_path / "home", [posix_tier("nvme", tmp_path / "nvme")], rigging=rigging) as place:
        place.start()
        store = place.connect()
        store.save("/run/0", {"w": parameter.data}).wait("nvme", timeout_s=60)
        began_s = time.monotonic()
        for _ in range(6):
            optimizer.step()
        store.save("/run/1", {"w": parameter.data}).wait("nvme", timeout_s=60)
    first, second = rigging.noted("heard")
    assert len(second) in (6, 7)  # with one that ended before, for the first to have a beginning
    assert second == sorted(second)
    assert began_s <= second[-6] <= second[-1] <= time.monotonic()
    assert set(first).isdisjoint(second[-6:])
    assert rigging.noted("aimed") == [[USED_CPUS, SLOWDOWN]] * 2
