"""The daemon dies of SIGKILL: at every failpoint, between any two durable effects, and at random moments.

Each case holds a daemon to what the client of the one before, which died in the story of `crash_story`, was told. Where the client waits
for the answer that death takes away, the daemon is killed indeed; what any other death leaves is taken from daemons that pause there
(`crash_images`). Which hit of a failpoint it is, is drawn from those that an undisturbed telling counts, with a seed that a failure
prints; CKPTSTORE_TEST_SEED draws others, and `tests/soak/test_daemon_kill_soak.py` takes many, killing a daemon for each.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import ckptstore_server.daemon
import ckptstore_server.rebuild  # noqa: F401 - both declare failpoints
from ckptstore import failpoints
from ckptstore.errors import WrongStore
from ckptstore_server.identity import ROOT_KEYS
from ckptstore_tiers.posix_probe import LEFTOVER_S, TOKEN
from tests.faults.crash_images import CrashImage, Hits, pauses, taking_images
from tests.faults.crash_story import Facts, World, check_recovered, tell_until_death, unfinished, until
from tests.faults.forked_daemon import ForkedDaemon, run_rebuild

SEED = int(os.environ.get("CKPTSTORE_TEST_SEED", "20240607"))
RANDOM_MOMENTS = 4
#: Of the story, for the images of deaths.
TELLINGS = 3

#: Failpoints that are only reached after another fault, which is armed with them at the hit that is drawn.
AFTER_A_FAULT = {
    "posix.put.discard": "posix.put.fsync=eio",
    "posix.put.withdraw": "posix.put.fsync_folder=eio",
}
#: Failpoints that only a daemon reaches which was started on what another one left: where that one was killed.
AFTER_A_DEATH = {
    "posix.sweep.unlink": "posix.put.write",
}
#: A client is waiting for what the daemon does there: that it hears of the death is part of the case.
AWAITED = {"ingest.before_catalog", "publish.after_catalog", "recall.before_put", "move.after_catalog", "tag.after_catalog"}
#: A rebuild is another program than the daemon, which does not import it.
REBUILD = "rebuild."
#: What readers' copies do is killed in `test_cache_crash.py`: the story makes none.
COPIES = "cache."
#: Carrying out what policies decide is killed in `tests/e2e/test_retention.py`: the story has none.
POLICIES = "retention."
#: What the tiers hear of attachments is killed in `tests/readers/test_attachments_rebuilt.py`: the story has none.
ATTACHED = "attachments."
NAMES = [name for name in failpoints.names() if not name.startswith(("test.", REBUILD, COPIES, POLICIES, ATTACHED))]


@dataclass(frozen=True)
class Telling:
    """How often an undisturbed story hits each failpoint, until the daemon answers and until the end."""

    at_start: Counter[str]
    at_end: Counter[str]
    seconds: float

    def hits(self, name: str) -> range:
        """The hits of the story itself; those of the start if it has none."""
        first = self.at_start[name] + 1
        return range(first, self.at_end[name] + 1) if self.at_end[name] >= first else range(1, first)


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Telling:
    world = World(tmp_path_factory.mktemp("telling")).write()
    hits, facts = Hits(world.base / "hits"), Facts()
    began_s = time.monotonic()
    with ForkedDaemon(world.home, rigging=hits) as daemon:
        at_start = hits.counted()
        tell_until_death(world, daemon, facts)
        assert daemon.alive, daemon.log()
    told = Telling(at_start, hits.counted(), time.monotonic() - began_s)
    check_recovered(world, facts)
    return told


def drawn_hits(telling: Telling, name: str, count: int) -> list[int]:
    """Some hits of a failpoint, by the seed; spread over all of them when there are many to draw."""
    hits = telling.hits(name)
    draw = random.Random(f"{SEED} {name}")
    return sorted(draw.sample(hits, min(count, len(hits))))


COMPRESSIONS = [(pfs, store) for pfs in ("zstd", "float") for store in ("none", "zstd", "float")]


def new_world(base: Path, *drawn_by: object) -> World:
    """Tiers that compress in one way or another, or not: drawn, like the moment."""
    return World(base, compression=random.Random(f"{SEED} compression {drawn_by}").choice(COMPRESSIONS)).write()


@pytest.fixture(scope="module")
def images(telling: Telling, tmp_path_factory: pytest.TempPathFactory) -> dict[str, CrashImage]:
    """For each failpoint, what a death at the hit that is drawn leaves; from tellings with different compression.

    Two tellings never hit a failpoint equally often: where this one does not come to the hit, the first one counts.
    """
    names = [name for name in NAMES if name not in AWAITED | AFTER_A_FAULT.keys() | AFTER_A_DEATH.keys()]
    random.Random(SEED).shuffle(names)
    found: dict[str, CrashImage] = {}
    for number, compression in enumerate(random.Random(SEED).sample(COMPRESSIONS, TELLINGS)):
        world = World(tmp_path_factory.mktemp("images"), compression=compression).write()
        moments = {
            name: [f"{name}@{hit}" for hit in (*drawn_hits(telling, name, 1), telling.hits(name).start)] for name in names[number::TELLINGS]
        }
        told = images_of(world, set().union(*moments.values()))
        found |= {name: told[reached[0]] for name in moments if (reached := [moment for moment in moments[name] if moment in told])}
    return found


def images_of(world: World, moments: set[str]) -> dict[str, CrashImage]:
    hits, facts = Hits(world.base / "hits", frozenset(moments)), Facts()
    with (
        ForkedDaemon(world.home, rigging=hits).start_unready() as daemon,
        taking_images(daemon, facts, pauses(hits.file), lambda moment: world.copy(world.base / moment)) as images,
    ):
        assert daemon.wait_ready(), daemon.log()
        tell_until_death(world, daemon, facts)
    return images


def die_once(base: Path, name: str, telling: Telling, hit: int) -> bool:
    """Whether the daemon died of this failpoint. If it did, everything that must hold afterwards has been checked."""
    world, facts = new_world(base, name, hit), Facts()
    armed = f"{AFTER_A_FAULT[name]}@{hit}; {name}=kill" if name in AFTER_A_FAULT else f"{name}=kill@{hit}"
    if name in AFTER_A_DEATH:
        with ForkedDaemon(world.home, failpoints=f"{AFTER_A_DEATH[name]}=kill@{hit}") as first:
            tell_until_death(world, first, facts)
        with ForkedDaemon(world.home, failpoints=f"{name}=kill") as second:
            settle_or_die(world, second)
            died = second.was_killed
    else:
        with ForkedDaemon(world.home, failpoints=armed) as daemon:
            if daemon.alive:
                tell_until_death(world, daemon, facts)
            died = daemon.was_killed
    if died:
        let_leftovers_age(world)
        check_recovered(world, facts)
    return died


def let_leftovers_age(world: World) -> None:
    """What may be another node's, a probe's or a root's document, is cleaned up so much later that nobody can be writing it any more."""
    for root in world.tiers.values():
        for file in (file for name in (TOKEN, *ROOT_KEYS) for file in root.glob(f"tmp/{name}*")):
            os.utime(file, (0, file.stat().st_mtime - 2 * LEFTOVER_S))


def settle_or_die(world: World, daemon: ForkedDaemon) -> None:
    until(lambda: not daemon.alive or not unfinished(world), "the store does not come to rest")


def die_at(name: str, telling: Telling, tmp_path: Path, count: int) -> None:
    drawn_from = AFTER_A_FAULT.get(name, AFTER_A_DEATH.get(name, name)).partition("=")[0]
    hits = drawn_hits(telling, drawn_from, count)
    print(f"seed {SEED}: {name} at hits {hits} of {telling.at_end[drawn_from]}")
    died = [die_once(tmp_path / str(hit), name, telling, hit) for hit in hits]
    if not any(died):  # two tellings never hit a failpoint equally often: what the first has, the second may lack
        assert die_once(tmp_path / "first", name, telling, 1), f"no story reaches {name}"


@pytest.mark.parametrize("name", NAMES)
def test_a_daemon_killed_at_a_failpoint_loses_nothing_and_leaves_nothing(
    name: str, telling: Telling, images: dict[str, CrashImage], tmp_path: Path
) -> None:
    if (image := images.get(name)) is None:  # also for a hit that this telling did not come to
        die_at(name, telling, tmp_path, 1)
        return
    print(f"seed {SEED}: {name}, left in {image.world.base}")
    let_leftovers_age(image.world)
    check_recovered(image.world, image.facts)


def die_after(base: Path, first_s: float, second_s: float | None) -> None:
    """Kill the daemon so long after its start, and the one that takes over as well, if asked; then check."""
    world, facts = new_world(base, first_s), Facts()
    with ForkedDaemon(world.home).start_unready() as daemon, killed_after(first_s, daemon):
        if daemon.wait_ready():
            tell_until_death(world, daemon, facts)
    if second_s is not None:
        with ForkedDaemon(world.home).start_unready() as daemon, killed_after(second_s, daemon):
            if daemon.wait_ready():
                settle_or_die(world, daemon)
    let_leftovers_age(world)
    check_recovered(world, facts)


@contextmanager
def killed_after(seconds: float, daemon: ForkedDaemon) -> Iterator[None]:
    timer = threading.Timer(seconds, daemon.send_kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def die_at_random(first: int, count: int, telling: Telling, tmp_path: Path) -> None:
    for number in range(first, first + count):
        draw = random.Random(f"{SEED} {number}")
        first_s = draw.uniform(0, telling.seconds)
        second_s = draw.uniform(0, telling.seconds / 2) if draw.random() < 0.5 else None
        print(f"seed {SEED}, moment {number}: killed after {first_s:.3f} s" + (f", then after {second_s:.3f} s" if second_s else ""))
        die_after(tmp_path / str(number), first_s, second_s)


@pytest.mark.parametrize("moment", range(RANDOM_MOMENTS))
def test_a_daemon_killed_at_a_random_moment_loses_nothing_and_leaves_nothing(moment: int, telling: Telling, tmp_path: Path) -> None:
    die_at_random(moment, 1, telling, tmp_path)


@pytest.fixture(scope="module")
def told_world(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Facts]:
    """A store at rest, after the whole story, and what is true of it."""
    world, facts = World(tmp_path_factory.mktemp("told")).write(), Facts()
    with ForkedDaemon(world.home) as daemon:
        tell_until_death(world, daemon, facts)
        assert daemon.stop() == 0
    return world, facts


@pytest.mark.parametrize("name", failpoints.names(REBUILD))
def test_a_rebuild_killed_at_a_failpoint_leaves_no_half_catalog_in_use_and_is_run_again(
    name: str, told_world: tuple[World, Facts], tmp_path: Path
) -> None:
    world, facts = told_world[0].copy(tmp_path / "world"), told_world[1]
    world.lose_catalog()
    assert run_rebuild(world.home, failpoints=f"{name}=kill") == -signal.SIGKILL
    if name != "rebuild.ended":
        with ForkedDaemon(world.home) as daemon:
            assert daemon.wait_exit(60.0) == WrongStore.exit_code, "a catalog that was not rebuilt to its end may not be used"
        assert run_rebuild(world.home) == 0
    check_recovered(world, facts)


def test_each_failpoint_of_the_daemon_is_declared_once_and_belongs_to_a_story() -> None:
    """The cases above fail for a failpoint that no story reaches; here, that they are all the failpoints there are."""
    assert len(NAMES) == len(set(NAMES)) > 40
    assert set(AFTER_A_FAULT) | set(AFTER_A_DEATH) <= set(NAMES)
