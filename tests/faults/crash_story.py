"""What must be true after a daemon died at any moment of its life? One story that does everything once, and the checks.

`tell` is the client's side: it saves, some of it incrementally, so that checkpoints refer to others that are replaced and removed, and
some of it guarded, by an optimizer that changes its weights at once; it waits, replaces, removes, fills a tier until it evicts, moves
something to another path, says something about it, reads back what was evicted, and finds a damaged replica; before each act it notes in
`Facts` what may be true from here on, and after each acknowledgement what must be. The daemon may die anywhere in between: then the story
ends. `check_recovered` starts a daemon without faults on what is left and holds it to the facts; `check_tiers_agree` compares catalog and
tiers file by file when that daemon has stopped.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ckptstore
from ckptstore.catalog.model import record_key
from ckptstore.durability import is_as_safe_as
from ckptstore.errors import CkptStoreError, NotFound
from ckptstore_client.store import Store
from tests.daemon_process import write_config
from tests.faults.forked_daemon import ForkedDaemon, run_rebuild

#: More than one block of 4 MiB; with FILLER it does not fit into the first tier.
BIG_BYTES = (4 << 20) + 300_001
SMALL_BYTES = 60_000
FILLER_BYTES = 2_500_000
NVME_CAPACITY_BYTES = 6 << 20
#: How long recovery may take on a busy machine before a test gives up, in seconds.
SETTLE_TIMEOUT_S = 60.0

NOTHING, REMOVED_VERSION, FILLER_VERSION = 0, 3, 5
BIG, PLAIN, REMOVED, FILLER, LAST = "/run/big", "/run/a", "/run/b", "/files/filler", "/run/c"
MOVED = "/files/moved"  # where the filler goes


def frozen() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What no version changes: of incremental saves only the first in the folder writes it."""
    return content(0, SMALL_BYTES)


def content(version: int, size_bytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(version).integers(0, 256, size_bytes, dtype=np.uint8)


def weights(version: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What a tier with `compression = "float"` splits."""
    return np.random.default_rng(version).standard_normal(2_000, dtype=np.float32)


@dataclass
class Facts:
    """What the client was told. A version is a number above 0; NOTHING means that nothing is published there."""

    may: dict[str, set[int]] = field(default_factory=dict)
    #: (path, version) → shared tiers that `wait` has acknowledged for it
    held: dict[tuple[str, int], set[str]] = field(default_factory=dict)
    #: what may be said of what was moved
    said: set[str | None] = field(default_factory=lambda: {None})
    damaged: bool = False  # whether the story spoiled a replica itself

    def begun(self, path: str, version: int) -> None:
        self.may.setdefault(path, {NOTHING}).add(version)

    def acknowledged(self, path: str, version: int) -> None:
        self.may[path] = {version}

    def copy(self) -> Facts:
        """From another thread, too: what changes these collections, and what copies them, is one act of the interpreter each."""
        may = {path: set(versions) for path, versions in self.may.copy().items()}
        held = {what: set(tiers) for what, tiers in self.held.copy().items()}
        return Facts(may, held, set(self.said), self.damaged)


@dataclass
class World:
    """A home and its tiers below one folder."""

    base: Path
    third_tier: bool = True
    #: The pfs is always compressed, so that nobody can open what lies there: what was evicted from nvme has to be recalled.
    compression: tuple[str, str] = ("float", "none")

    @property
    def home(self) -> Path:
        return self.base / "home"

    @property
    def disk(self) -> Path:
        return self.base / "disk"

    @property
    def catalog(self) -> Path:
        return self.home / "catalog.sqlite3"

    @property
    def tiers(self) -> dict[str, Path]:
        names = ["nvme", "pfs", "object"] if self.third_tier else ["nvme", "pfs"]
        return {name: self.disk / name for name in names}

    def write(self) -> World:
        tiers: list[dict[str, Any]] = [
            # 4.6 MB are 0.73 of it: below the mark. With the filler they are above it.
            {
                "name": "nvme", "kind": "posix", "path": self.tiers["nvme"],
                "capacity": NVME_CAPACITY_BYTES, "high_water": 0.8, "low_water": 0.5,
            },
            {"name": "pfs", "kind": "posix", "path": self.tiers["pfs"], "shared": True, "compression": self.compression[0]},
        ]  # fmt: skip
        if self.third_tier:
            url = f"file://{self.tiers['object']}"
            tiers.append({"name": "object", "kind": "object", "url": url, "compression": self.compression[1]})
        write_config(
            self.home, tiers=tiers, grace_s=0, memory={"limit": "64MiB", "slots": 2, "idle_release_s": 0, "huge_pages": False}
        )
        self.disk.mkdir(exist_ok=True)
        return self

    def lose_catalog(self) -> None:
        for file in self.home.glob("catalog.sqlite3*"):
            file.unlink()

    def copy(self, base: Path, *, with_disk: bool = True) -> World:
        """The same disks in another place. Paths in the configuration are the new ones; the catalog does not know paths."""
        other = World(base, self.third_tier, self.compression)
        shutil.copytree(self.home, other.home, ignore=shutil.ignore_patterns("*.sock", "*.log"))
        if with_disk:
            shutil.copytree(self.disk, other.disk)
        return other.write()


def connected(world: World) -> Store:
    return ckptstore.connect(home=world.home, start=False, timeout_s=30.0)


# --- the story ---------------------------------------------------------------------------------------------------------------------


class Spoiling(torch.optim.Optimizer):
    """Whose step changes its weights as soon as it may."""

    def __init__(self, first: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        self.weights = torch.from_numpy(first)
        super().__init__([self.weights], {})

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.weights.zero_()


class Teller:
    def __init__(self, world: World, store: Store, facts: Facts) -> None:
        self.world = world
        self.store = store
        self.facts = facts
        self.shared = [name for name in world.tiers if name != "nvme"]

    def save(
        self, path: str, version: int, size_bytes: int, *tiers: str, replace: bool = False, incremental: bool = False, guarded: bool = False
    ) -> None:
        self.facts.begun(path, version)
        state: dict[str, Any] = {"bytes": content(version, size_bytes), "frozen": frozen(), "weights": weights(version), "version": version}
        guard = Spoiling(weights(version)) if guarded else None
        if guard is not None:
            state["weights"] = guard.weights
        pending = self.store.save(path, state, replace=replace, rank=0, world_size=1, incremental=incremental, guard=guard)
        if guard is not None:
            guard.step()
        for tier in tiers:
            pending.wait(tier, timeout_s=SETTLE_TIMEOUT_S)
            self.facts.acknowledged(path, version)
            if tier in self.shared:
                self.facts.held.setdefault((path, version), set()).add(tier)

    def put(self, path: str, version: int, size_bytes: int) -> None:
        self.facts.begun(path, version)
        local = self.world.base / "filler"
        content(version, size_bytes).tofile(local)
        self.store.put(local, path, timeout_s=SETTLE_TIMEOUT_S)
        self.facts.acknowledged(path, version)

    def remove(self, path: str) -> None:
        self.facts.begun(path, NOTHING)
        self.store.rm(path)
        self.facts.acknowledged(path, NOTHING)

    def move(self, path: str, to: str, version: int) -> None:
        self.facts.begun(path, NOTHING)
        self.facts.begun(to, version)
        self.store.mv(path, to)
        self.facts.acknowledged(path, NOTHING)
        self.facts.acknowledged(to, version)

    def tag(self, path: str, what: str) -> None:
        self.facts.said.add(what)
        self.store.tag(path, {"said": what})
        self.facts.said = {what}

    def load(self, path: str, version: int, size_bytes: int) -> None:
        state = self.store.load(path)
        assert state["version"] == version
        assert np.array_equal(state["bytes"], content(version, size_bytes))

    def until_evicted(self, path: str) -> None:
        """Wait until the first tier has given up an object of this path."""
        until(lambda: "nvme" not in self.store.stat(path).durability, f"{path} was not evicted", self.store)

    def damage(self, path: str) -> None:
        """Flip a byte of a replica in the first tier, behind the daemon's back."""
        self.facts.damaged = True
        (file,) = (file for file in (self.world.tiers["nvme"] / "objects" / path[1:]).rglob("rank*"))
        with open(file, "r+b") as stored:
            stored.seek(-100, 2)
            byte = stored.read(1)[0]
            stored.seek(-100, 2)
            stored.write(bytes([byte ^ 0x10]))


def tell(world: World, store: Store, facts: Facts) -> None:
    """The whole story. Raises what the store raises: DaemonUnavailable when the daemon dies."""
    teller = Teller(world, store, facts)
    teller.save(BIG, 1, BIG_BYTES, "nvme", *teller.shared, guarded=True)
    teller.save(PLAIN, 2, SMALL_BYTES, "nvme", incremental=True)
    teller.save(REMOVED, REMOVED_VERSION, SMALL_BYTES, "nvme", teller.shared[-1], incremental=True)
    teller.save(PLAIN, 4, SMALL_BYTES, "nvme", "pfs", replace=True, incremental=True)
    teller.remove(REMOVED)
    teller.put(FILLER, FILLER_VERSION, FILLER_BYTES)
    teller.until_evicted(BIG)
    teller.move(FILLER, MOVED, FILLER_VERSION)
    teller.tag(MOVED, "it was checked")
    teller.load(BIG, 1, BIG_BYTES)
    teller.save(LAST, 6, SMALL_BYTES, "nvme", "pfs", incremental=True, guarded=True)
    teller.damage(LAST)
    assert any(line.problem for line in store.verify(LAST)), "a flipped byte went unnoticed"
    teller.save(PLAIN, 7, SMALL_BYTES, *teller.shared, replace=True)


def tell_until_death(world: World, daemon: ForkedDaemon, facts: Facts) -> None:
    """Tell the story to a daemon that may die of it, and wait for the work that it leaves. An error while it lives is a failure."""
    try:
        with connected(world) as store:
            tell(world, store, facts)
            until(lambda: not daemon.alive or not unfinished(world), "the store does not come to rest", store)
    except CkptStoreError as error:
        if daemon.wait_exit(10.0) is None:
            raise AssertionError(f"the story failed while the daemon lived: {error!r}\n{daemon.log()[-3000:]}") from error


# --- the checks --------------------------------------------------------------------------------------------------------------------


def until(condition: Callable[[], object], what: str, store: Store | None = None, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
    """Poll for a condition, with a deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            errors = [error.model_dump() for error in store.status().errors] if store is not None else []
            raise AssertionError(f"{what}; the daemon's last errors: {errors[-5:]}")
        time.sleep(0.02)  # the loop's condition decides, not the time that passed


def rows(world: World, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{world.catalog}?mode=ro", uri=True, timeout=10.0)) as catalog:
        return catalog.execute(query).fetchall()


#: What is still to be done: all of these are empty when a store has come to rest.
UNFINISHED_WORK = {
    "drains": "SELECT tier, tries, error FROM drains",
    "owed records": "SELECT publication_id, tier FROM owed_records",
    "chores": "SELECT act, tier, tries, error FROM chores",
    "tombstones": "SELECT publication_id, tier FROM tombstones",
    "ranks": "SELECT attempt_id, state FROM ranks",
    "attempts": "SELECT path, state FROM attempts WHERE state IN ('open', 'complete')",
    "publications": "SELECT path, state FROM publications WHERE state NOT IN ('live', 'remains')",
    "kept for nobody": (
        "SELECT path FROM publications WHERE state = 'remains' AND NOT EXISTS (SELECT 1 FROM object_references JOIN objects "
        "USING (object_id) WHERE objects.attempt_id = publication_id)"
    ),
    "references": "SELECT attempt_id FROM object_references WHERE attempt_id NOT IN (SELECT publication_id FROM publications)",
}


def unfinished(world: World) -> dict[str, list[tuple[Any, ...]]]:
    found = {name: rows(world, query) for name, query in UNFINISHED_WORK.items()}
    return {name: left for name, left in found.items() if left}


def version_at(store: Store, path: str) -> int:
    """Which version is published there, its bytes compared; NOTHING if none is."""
    try:
        found = store.stat(path)
    except NotFound:
        return NOTHING
    if found.kind == "file":
        with tempfile.TemporaryDirectory() as folder:
            data = np.fromfile(store.get(path, Path(folder) / "filler"), dtype=np.uint8)
        version = FILLER_VERSION
    else:
        state = store.load(path)
        data, version = state["bytes"], state["version"]
        assert np.array_equal(state["frozen"], frozen()), f"{path} has other frozen bytes than were saved"
        assert np.array_equal(state["weights"], weights(version)), f"{path} has other weights than were saved"
    assert np.array_equal(data, content(version, data.size)), f"{path} has other bytes than were saved"
    assert data.size in (BIG_BYTES, SMALL_BYTES, FILLER_BYTES)
    return int(version)


def check_facts(store: Store, facts: Facts) -> dict[str, int]:
    """What was acknowledged is there and identical, what was removed is not, and nothing else is; which version is where."""
    found: dict[str, int] = {}
    for path, may in facts.may.items():
        found[path] = version_at(store, path)
        assert found[path] in may, f"{path}: version {found[path]} is there, acknowledged was one of {sorted(may)}"
    if MOVED in found:
        assert sorted([found[FILLER], found[MOVED]]) == [NOTHING, FILLER_VERSION], "what was moved is at one path, and at one only"
        said = store.stat(MOVED).metadata.get("said") if found[MOVED] else None
        assert said in facts.said, f"said of it is {said!r}, acknowledged was one of {facts.said}"
    published = [entry.path for folder in ("/run", "/files") for entry in entries(store, folder)]
    assert set(published) == {path for path, version in found.items() if version != NOTHING}
    return found


def entries(store: Store, folder: str) -> Iterator[Any]:
    try:
        yield from store.ls(folder)
    except NotFound:
        return


@contextmanager
def recovered(world: World) -> Iterator[Store]:
    """A daemon without faults on what is left, stopped in good order at the end."""
    with ForkedDaemon(world.home) as daemon:
        assert daemon.alive, f"the daemon does not start again:\n{daemon.log()[-3000:]}"
        with connected(world) as store:
            yield store
        assert daemon.stop() == 0, daemon.log()[-3000:]


def check_recovered(world: World, facts: Facts) -> None:
    """Everything that must hold after a crash, from the restart to the last file on the disks."""
    with recovered(world) as store:
        found = check_facts(store, facts)
        for (path, version), tiers in facts.held.items():
            if found[path] == version:
                now, order = store.stat(path).durability, store.hello().tiers
                lost = {tier for tier in tiers if not is_as_safe_as(tier, now, order)}  # a deeper one had answered for it, or does
                assert not lost, f"{path}: {lost} had acknowledged it, and now {now} have it"
        finish(world, store)
        if facts.damaged:
            list(store.verify("/"))  # finds and mends what the story itself spoiled
            finish(world, store)
        problems = [line for line in store.verify("/") if line.problem]
        assert not problems, problems
        assert check_facts(store, facts) == found
        shared = [name for name in world.tiers if name != "nvme"]
        for path, version in found.items():
            if version != NOTHING:
                assert set(shared) <= set(store.stat(path).durability), f"{path} was not drained"
        finish(world, store)  # reading may have recalled something, and something else gave way to it
    check_tiers_agree(world)


def check_rebuilt(world: World, facts: Facts) -> None:
    """The catalog is lost as well. What a tier acknowledged comes back from the records; what was deleted there does not.

    Two promises end with the catalog: a removal counts once its first tombstone is written, and a put that was published but not
    waited for counts once its first record is. The lost catalog tells which of them were.
    """
    for path, may in weaker_facts(world).items():
        facts.may[path] |= may
    world.lose_catalog()
    assert run_rebuild(world.home) == 0, (world.home / "test-daemon.log").read_text()[-3000:]
    with recovered(world) as store:
        found = check_facts(store, facts)
        finish(world, store)
        if facts.damaged:
            list(store.verify("/"))
            finish(world, store)
        problems = [line for line in store.verify("/") if line.problem]
        assert not problems, problems
        assert check_facts(store, facts) == found


def weaker_facts(world: World) -> dict[str, set[int]]:
    may: dict[str, set[int]] = {}
    if not world.catalog.exists() or not rows(world, "SELECT name FROM sqlite_master WHERE name = 'publications'"):
        return may
    unburied = "SELECT path FROM publications WHERE state = 'deleted' AND publication_id NOT IN (SELECT publication_id FROM tombstones)"
    if (REMOVED,) in rows(world, unburied):
        may[REMOVED] = {REMOVED_VERSION}
    unrecorded = "SELECT path FROM publications WHERE state = 'live' AND publication_id NOT IN (SELECT publication_id FROM tier_commits)"
    if (FILLER,) in rows(world, unrecorded):
        may[FILLER] = {NOTHING}
    if (MOVED,) in rows(world, unrecorded):
        may |= {FILLER: {FILLER_VERSION}, MOVED: {NOTHING}}
    return may


def finish(world: World, store: Store) -> None:
    """Drains, records and deletions go on from where they were, and come to an end."""
    try:
        until(lambda: not unfinished(world), "the store does not come to rest", store)
    except AssertionError as error:
        raise AssertionError(f"{error}; left: {unfinished(world)}") from None


def check_tiers_agree(world: World) -> None:
    """Each file is one that the catalog knows, and the other way round. The daemon has stopped."""
    assert unfinished(world) == {}
    records = {record_key(item) for (item,) in rows(world, "SELECT publication_id FROM publications WHERE state = 'live'")}
    for name, root in world.tiers.items():
        objects = {
            key
            for (key,) in rows(
                world,
                "SELECT objects.key FROM replicas JOIN objects USING (object_id) JOIN publications ON publication_id = attempt_id "
                f"WHERE tier = '{name}' AND NOT damaged",
            )
        }
        noted = {record_key(item) for (item,) in rows(world, f"SELECT publication_id FROM tier_commits WHERE tier = '{name}'")}
        there = {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}
        # A record stays where an eviction has taken an object of its publication: deleting the publication removes it.
        unknown = there - objects - records - {"store.json", "rebuilt.json"}
        assert not unknown, f"{name} holds what the catalog does not know: {sorted(unknown)}"
        lost = (objects | noted | {"store.json"}) - there
        assert not lost, f"{name} lacks what the catalog says is there: {sorted(lost)}"
    strays = [file.name for file in world.home.iterdir() if file.name.startswith("spool-") or file.suffix == ".new"]
    assert not strays, f"left in the home: {strays}"
