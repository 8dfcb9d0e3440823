"""The power fails under the daemon: whatever its tiers had not fsynced is lost, at any of their system calls.

A daemon in a process of its own tells the story of `crash_story`, with every labelled call of its two posix tiers shown to the model of
`power_cut`. Right before one of the calls the model writes down what the disks hold, and the process dies. The next daemon gets that
image. The catalog is kept as it is: that what SQLite has committed survives a power cut is SQLite's own promise with
synchronous=FULL, in WAL mode, and is not tested here. In further cases the catalog is lost with the power, and made again from the
records.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ckptstore.errors import CkptStoreError
from ckptstore_tiers import disk_calls, posix_probe
from tests.faults.crash_story import Facts, World, check_rebuilt, check_recovered, tell_until_death
from tests.faults.forked_daemon import ForkedDaemon
from tests.faults.power_cut import PowerCutDisk, Survives
from tests.faults.test_daemon_kill import SEED, let_probes_age

CUTS, CUTS_WITHOUT_CATALOG = 40, 10
#: Calls that change a disk, or say what is on it: one thread at a time makes them, so that the model sees what happens.
CHANGING = ("open_file", "pwrite", "fallocate", "ftruncate", "fsync", "rename", "rename_new", "link", "unlink", "mkdir", "rmdir")


class FailingPower(PowerCutDisk):
    """A witness that writes down the label of every changing call and, at call number `cut_at`, ends the process.

    The other threads cannot change a disk meanwhile; what they commit to the catalog until the process is dead follows from calls
    that the image has seen.
    """

    def __init__(self, root: Path, labels: Path, cut_at: int | None, survives: Survives, image: Path) -> None:
        super().__init__(root)
        self._root_folder = root
        self._labels = os.open(labels, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._cut_at = cut_at
        self._survives = survives
        self._image = image
        self._calls = 0

    def before(self, label: str, call: str, arguments: tuple[Any, ...]) -> None:
        if call in ("preadv", "open_folder") or label == posix_probe.PROBE:
            return  # of a probe, which keeps nothing, the number of calls is different each time
        self._calls += 1
        os.write(self._labels, f"{label}\n".encode())
        if self._calls == self._cut_at:
            self.now().images[self._survives].materialise(self._image)
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class PowerCut:
    """Rigging for a daemon whose disks are below `root`."""

    root: Path
    labels: Path
    image: Path
    cut_at: int | None = None
    survives: Survives = Survives.STRICT
    forgotten: str | None = None  # calls of this label are not made: a daemon with a bug

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
        power = FailingPower(self.root, self.labels, self.cut_at, self.survives, self.image)
        stack.enter_context(disk_calls.witnessed_by(power))


def world_with_disks(base: Path) -> World:
    """The tiers' roots are there before the story: making one is the operator's act, and not the model's."""
    base.mkdir(exist_ok=True)
    world = World(base, third_tier=False).write()
    for root in world.tiers.values():
        (root / "tmp").mkdir(parents=True)
    return world


@dataclass(frozen=True)
class Calls:
    """The labels of the calls that a daemon made, in order, and how many of them it made until it answered."""

    labels: list[str]
    at_start: int


def told(
    world: World, facts: Facts, *, cut_at: int | None, survives: Survives = Survives.STRICT, forgotten: str | None = None
) -> Calls:
    """Tell the story until the power fails, and put the disks back as they survive it."""
    labels, image = world.base / "labels", world.base / "image"
    with ForkedDaemon(world.home, rigging=PowerCut(world.disk, labels, image, cut_at, survives, forgotten)) as daemon:
        at_start = len(labels.read_text().splitlines())
        if daemon.alive:
            tell_until_death(world, daemon, facts)
        died = daemon.was_killed
    if died:
        shutil.rmtree(world.disk)
        image.rename(world.disk)
        let_probes_age(world)
    return Calls(labels.read_text().splitlines(), at_start)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Calls:
    """The calls of an undisturbed story."""
    world, facts = world_with_disks(tmp_path_factory.mktemp("power")), Facts()
    found = told(world, facts, cut_at=None)
    check_recovered(world, facts)
    return found


def drawn_cuts(calls: Calls, count: int, purpose: str, *, from_start: bool) -> list[int]:
    """Numbers of calls, from 1, spread over all labels: each label once, then each again, until there are enough."""
    draw = random.Random(f"{SEED} {purpose}")
    numbers_of = defaultdict(list)
    for number, label in enumerate(calls.labels, start=1):
        if from_start or number > calls.at_start:
            numbers_of[label].append(number)
    for numbers in numbers_of.values():
        draw.shuffle(numbers)
    longest = max(map(len, numbers_of.values()))
    return [numbers[turn] for turn in range(longest) for numbers in numbers_of.values() if turn < len(numbers)][:count]


def cut_power(base: Path, number: int, survives: Survives, check: Callable[[World, Facts], None]) -> None:
    world, facts = world_with_disks(base), Facts()
    made = told(world, facts, cut_at=number, survives=survives)
    print(f"seed {SEED}: power cut before call {number} ({made.labels[-1]}), {survives.value}")
    check(world, facts)


def survivors(case: int) -> Survives:
    return (Survives.STRICT, Survives.NAMES_KEPT)[case % 2]


@pytest.mark.parametrize("case", range(CUTS))
def test_after_a_power_cut_what_was_acknowledged_is_there_and_nothing_is_left_over(case: int, calls: Calls, tmp_path: Path) -> None:
    number = drawn_cuts(calls, CUTS, "cuts", from_start=True)[case]
    cut_power(tmp_path / "world", number, survivors(case), check_recovered)


@pytest.mark.parametrize("case", range(CUTS_WITHOUT_CATALOG))
def test_after_a_power_cut_that_took_the_catalog_the_records_bring_back_what_was_acknowledged(
    case: int, calls: Calls, tmp_path: Path
) -> None:
    number = drawn_cuts(calls, CUTS_WITHOUT_CATALOG, "catalog", from_start=False)[case]
    cut_power(tmp_path / "world", number, survivors(case), check_rebuilt)


@pytest.mark.parametrize(
    ("forgotten", "survives"), [("posix.put.fsync", Survives.NAMES_KEPT), ("posix.put.fsync_folder", Survives.STRICT)]
)
def test_a_daemon_that_forgets_an_fsync_is_found_out(forgotten: str, survives: Survives, calls: Calls, tmp_path: Path) -> None:
    """The checks above can fail."""
    last_delete = max(number for number, label in enumerate(calls.labels, start=1) if label == "posix.delete.unlink")
    world, facts = world_with_disks(tmp_path / "world"), Facts()
    told(world, facts, cut_at=last_delete * 2 // 3, survives=survives, forgotten=forgotten)
    with pytest.raises((AssertionError, CkptStoreError)):
        check_recovered(world, facts)


def test_the_story_makes_every_kind_of_call_that_crash_safety_rests_on(calls: Calls) -> None:
    kinds = {"posix.put.create", "posix.put.write", "posix.put.fsync", "posix.put.publish", "posix.put.fsync_folder"}
    kinds |= {"posix.put_document.rename", "posix.folder.mkdir", "posix.folder.fsync_parent", "posix.delete.unlink"}
    assert kinds | {"posix.delete.fsync_folder", "posix.folder.rmdir"} <= set(calls.labels)
