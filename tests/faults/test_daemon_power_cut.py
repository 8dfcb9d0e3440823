"""The power fails under the daemon: whatever its tiers had not fsynced is lost, at any of their system calls.

A daemon in a process of its own tells the story of `crash_story`, with every labelled call of its two posix tiers shown to the model of
`power_cut`. Right before some of the calls the model writes down what the disks hold, and the process pauses, so that the catalog can be
copied as it is then (`crash_images`); each case starts a daemon on one such image. That what SQLite has committed survives a power cut is
SQLite's own promise with synchronous=FULL, in WAL mode, and is not tested here. In further cases the catalog is lost with the power, and
made again from the records. `tests/soak/test_daemon_power_cut_soak.py` cuts at each call, and kills the daemon there.
"""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckptstore.errors import CkptStoreError
from tests.faults.crash_images import CrashImage, pauses, taking_images
from tests.faults.crash_story import Facts, World, check_rebuilt, check_recovered, tell_until_death
from tests.faults.failing_power import PowerCut
from tests.faults.forked_daemon import ForkedDaemon, run_rebuild
from tests.faults.power_cut import Survives
from tests.faults.test_daemon_kill import SEED, let_leftovers_age, settle_or_die

CUTS, CUTS_WITHOUT_CATALOG = 40, 10


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
        let_leftovers_age(world)
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


@pytest.fixture(scope="module")
def with_catalog(calls: Calls, tmp_path_factory: pytest.TempPathFactory) -> list[CrashImage]:
    return images_of(drawn_cuts(calls, CUTS, "cuts", from_start=True), tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def without_catalog(calls: Calls, tmp_path_factory: pytest.TempPathFactory) -> list[CrashImage]:
    return images_of(drawn_cuts(calls, CUTS_WITHOUT_CATALOG, "catalog", from_start=False), tmp_path_factory.mktemp("images"))


def images_of(numbers: list[int], base: Path) -> list[CrashImage]:
    """What is left of one telling by cuts at these calls, and at its end by those that it did not come to: no two make as many calls."""
    world, facts = world_with_disks(base), Facts()
    plan = {number: survivors(case) for case, number in enumerate(numbers)}
    power = PowerCut(world.disk, world.base / "labels", world.base / "cut", pauses_at=plan)

    def copy(number: str) -> World:
        return world.copy(power.image_at(int(number)).parent, with_disk=False)

    with (
        ForkedDaemon(world.home, rigging=power).start_unready() as daemon,
        taking_images(daemon, facts, pauses(power.labels), copy) as images,
    ):
        assert daemon.wait_ready(), daemon.log()
        tell_until_death(world, daemon, facts)
    assert len(images) > len(numbers) * 3 // 4
    return [images.get(str(number)) or CrashImage(world.copy(base / f"end-{number}"), facts.copy()) for number in numbers]


def check_image(image: CrashImage, check: Callable[[World, Facts], None]) -> None:
    print(f"seed {SEED}: what the power cut left is in {image.world.base}")
    let_leftovers_age(image.world)
    check(image.world, image.facts)


@pytest.mark.parametrize("case", range(CUTS))
def test_after_a_power_cut_what_was_acknowledged_is_there_and_nothing_is_left_over(case: int, with_catalog: list[CrashImage]) -> None:
    check_image(with_catalog[case], check_recovered)


@pytest.mark.parametrize("case", range(CUTS_WITHOUT_CATALOG))
def test_after_a_power_cut_that_took_the_catalog_the_records_bring_back_what_was_acknowledged(
    case: int, without_catalog: list[CrashImage]
) -> None:
    check_image(without_catalog[case], check_rebuilt)


@pytest.fixture(scope="module")
def without_its_catalog(tmp_path_factory: pytest.TempPathFactory) -> CrashImage:
    """A store at rest whose catalog is lost, and what is true of it."""
    world, facts = world_with_disks(tmp_path_factory.mktemp("told")), Facts()
    told(world, facts, cut_at=None)
    world.lose_catalog()
    return CrashImage(world, facts)


def test_a_rebuild_changes_nothing_on_a_disk_that_a_power_cut_could_take(without_its_catalog: CrashImage, tmp_path: Path) -> None:
    """So the cut leaves of it what a kill leaves (`test_daemon_kill.py`), and of the catalog what SQLite promises."""
    world = without_its_catalog.world.copy(tmp_path / "world")
    watched = PowerCut(world.disk, tmp_path / "labels", tmp_path / "image")
    assert run_rebuild(world.home, rigging=watched) == 0
    assert set(watched.labels.read_text().split()) <= {"posix.open.open"}
    check_recovered(world, without_its_catalog.facts.copy())


@pytest.fixture(scope="module")
def rebuilt(without_its_catalog: CrashImage) -> CrashImage:
    world = without_its_catalog.world.copy(without_its_catalog.world.base.with_name("rebuilt"))
    assert run_rebuild(world.home) == 0
    return CrashImage(world, without_its_catalog.facts)


def test_after_a_power_cut_at_any_call_of_the_first_daemon_on_a_rebuilt_catalog_nothing_is_lost(
    rebuilt: CrashImage, tmp_path: Path
) -> None:
    """It tells every root of the rebuild, which a root that was away does not know of."""
    cut_at, died = 0, True
    while died:
        cut_at += 1
        survives = survivors(cut_at)
        world = rebuilt.world.copy(tmp_path / str(cut_at))
        power = PowerCut(world.disk, world.base / "labels", world.base / "image", cut_at, survives)
        with ForkedDaemon(world.home, rigging=power) as daemon:
            if daemon.alive:
                settle_or_die(world, daemon)
                assert not daemon.alive or daemon.stop() == 0
            died = daemon.was_killed
        labels = power.labels.read_text().splitlines()
        if died:
            print(f"power cut before call {cut_at} ({labels[-1]}), {survives.value}")
            shutil.rmtree(world.disk)
            power.image.rename(world.disk)
            let_leftovers_age(world)
        check_recovered(world, rebuilt.facts.copy())
    assert labels.count("posix.put.publish") == len(world.tiers)


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
