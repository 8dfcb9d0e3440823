"""A daemon whose power fails: the model of `power_cut` watches its disks, and at some of their calls writes down what they would hold.

At such a call the daemon dies, or pauses (`crash_images`). Nothing here imports what only a test needs: each daemon that is rigged with it
would import that, too.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from ckptstore_tiers import disk_calls, posix_probe
from tests.faults.crash_images import pause, pauses
from tests.faults.power_cut import PowerCutDisk, Survives

#: Calls that change a disk, or say what is on it: one thread at a time makes them, so that the model sees what happens.
CHANGING = ("open_file", "pwrite", "fallocate", "ftruncate", "fsync", "rename", "rename_new", "link", "unlink", "mkdir", "rmdir")


@dataclass(frozen=True)
class PowerCut:
    """Rigging for a daemon whose disks are below `root`; calls are numbered from 1."""

    root: Path
    labels: Path
    image: Path  # of the call at which the power fails, and the daemon dies
    cut_at: int | None = None
    survives: Survives = Survives.STRICT
    forgotten: str | None = None  # calls of this label are not made: a daemon with a bug
    #: What survives if the power fails at these calls: the daemon pauses there, when `image_at` has been written.
    pauses_at: Mapping[int, Survives] = field(default_factory=dict)

    def image_at(self, number: int) -> Path:
        return self.image.with_name(f"{self.image.name}-{number}") / "disk"

    def __call__(self, stack: ExitStack) -> None:
        lock = threading.RLock()

        def one_at_a_time(call: Callable[..., Any]) -> Callable[..., Any]:
            def locked(label: str, *arguments: Any, **named: Any) -> Any:
                with lock:
                    return call(label, *arguments, **named) if label != self.forgotten else None

            return locked

        serial = {name: one_at_a_time(getattr(disk_calls, name)) for name in CHANGING}
        stack.enter_context(mock.patch.multiple(disk_calls, **serial))
        publishers = {"renameat2": serial["rename_new"], "link": serial["link"]}
        stack.enter_context(mock.patch.dict(posix_probe.PUBLISHERS, publishers))
        stack.enter_context(disk_calls.witnessed_by(FailingPower(self)))


class FailingPower(PowerCutDisk):
    """A witness that writes down the label of every changing call, and what a cut leaves where the plan wants it.

    The other threads cannot change a disk meanwhile; what they commit to the catalog until the process is dead, or stopped, follows from
    calls that the image has seen.
    """

    def __init__(self, plan: PowerCut) -> None:
        super().__init__(plan.root)
        self._plan = plan
        self._labels = os.open(plan.labels, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._calls = 0

    def before(self, label: str, call: str, arguments: tuple[Any, ...]) -> None:
        if call in ("preadv", "open_folder") or label == posix_probe.PROBE:
            return  # of a probe, which keeps nothing, the number of calls is different each time
        self._calls += 1
        os.write(self._labels, f"{label}\n".encode())
        if self._calls == self._plan.cut_at:
            self.image(self._plan.survives).materialise(self._plan.image)
            os.kill(os.getpid(), signal.SIGKILL)
        if (survives := self._plan.pauses_at.get(self._calls)) is not None:
            self.image(survives).materialise(self._plan.image_at(self._calls))
            pause(pauses(self._plan.labels), str(self._calls))
