"""The whole store against a plain dictionary: clients and a real daemon in three tiers, killed, starved and wiped between any two steps.

Every rule does one thing through the public client, or to the daemon and its disks from outside; after each, what `ls` and `load` show
must be what the model says. A save that was not waited for when the daemon died is the one thing that the model does not know: it looks,
and whatever it finds, the new version or the old one, must be whole and must stay.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

import ckptstore
from ckptstore.errors import AlreadyExists, AttemptAborted, CkptStoreError, NotFound, PathConflict
from ckptstore.paths import ancestors
from ckptstore_client.pending import PendingCheckpoint
from ckptstore_client.store import Store
from tests.daemon_process import write_config
from tests.faults.forked_daemon import ForkedDaemon

TIERS = ("nvme", "pfs", "object")
#: Few names, so that they meet: two of them lie one inside the other.
PATHS = st.sampled_from(["/a", "/a/x", "/b/x", "/b/y"])
SIZES = st.sampled_from([0, 1, 4096, 70_001])
#: Longer than the longest back-off of a drain that failed while its tier was away.
PATIENCE_S = 120.0
NVME_CAPACITY_BYTES = 400_000
#: Without explaining and shrinking: what fails depends on the moment of a crash too, and every try costs seconds.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
CHECKS = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)


def state_of(version: int, size: int) -> dict[str, Any]:
    random = np.random.default_rng(version)
    weights = {"w": random.integers(0, 256, size, dtype=np.uint8), "b": random.random(3, dtype=np.float32)}
    return {"model": weights, "version": version, "notes": [None, ("é", version)]}


def as_safe_as(tier: str) -> set[str]:
    """`wait(tier)` is answered by a deeper tier, too: from the small NVMe what it holds may have been evicted since."""
    return set(TIERS[TIERS.index(tier) :])


@dataclass(frozen=True)
class Version:
    """One thing that was saved or put. `number` makes its content."""

    number: int
    size: int
    kind: str  # "checkpoint" or "file"

    def content(self) -> bytes:
        return np.random.default_rng(self.number).integers(0, 256, self.size, dtype=np.uint8).tobytes()


@dataclass
class World:
    base: Path
    daemon: ForkedDaemon
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def folder(self, tier: str) -> Path:
        return self.base / tier

    def start_daemon(self) -> None:
        self.daemon = ForkedDaemon(self.base / "home").start()
        assert self.daemon.alive, self.daemon.log()[-3000:]

    def connect(self) -> Store:
        return ckptstore.connect(home=self.base / "home", start=False)


def begin_world(pfs: str, deep: str) -> World:
    base = Path(tempfile.mkdtemp(prefix="ckptstore-machine-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    tiers: list[dict[str, Any]] = [
        # Small, so that a handful of checkpoints makes it evict.
        {"name": "nvme", "kind": "posix", "path": base / "nvme", "capacity": NVME_CAPACITY_BYTES, "high_water": 0.6, "low_water": 0.3},
        # Compressed, so that what was evicted from nvme cannot be opened there and has to be recalled.
        {"name": "pfs", "kind": "posix", "path": base / "pfs", "shared": True, "compression": pfs},
        # Slow, so that something is mostly on its way there when the daemon dies.
        {"name": "object", "kind": "object", "url": f"file://{base / 'object'}", "bandwidth_limit": "1MB/s", "compression": deep},
    ]
    write_config(base / "home", tiers=tiers, grace_s=0, memory={"limit": "16MiB", "huge_pages": False, "idle_release_s": 0})
    return World(base, ForkedDaemon(base / "home").start())


class StoreMachine(RuleBasedStateMachine):
    """`live` is the model: what is visible. `down` are the tiers whose folder was taken away."""

    @initialize(pfs=st.sampled_from(["zstd", "float"]), deep=st.sampled_from(["none", "zstd", "float"]))
    def begin(self, pfs: str, deep: str) -> None:
        self.world = begin_world(pfs, deep)
        self.store = self.world.connect()
        self.live: dict[str, Version] = {}
        self.down: set[str] = set()
        self.removed: set[str] = set()  # ids of publications that must never be seen again

    def teardown(self) -> None:
        if hasattr(self, "world"):
            with suppress(CkptStoreError):
                self.store.close()
            self.world.daemon.kill()
            shutil.rmtree(self.world.base, ignore_errors=True)

    # --- the namespace ---------------------------------------------------------------------------------------------------------

    def refusal(self, path: str, replace: bool) -> type[CkptStoreError] | None:
        """What the model says to a save at a path."""
        if any(above in self.live for above in ancestors(path)) or any(other.startswith(path + "/") for other in self.live):
            return PathConflict
        return AlreadyExists if path in self.live and not replace else None

    @contextmanager
    def expecting(self, refusal: type[CkptStoreError] | None) -> Iterator[None]:
        if refusal is None:
            yield
            return
        with pytest.raises(refusal):
            yield

    def _save(self, path: str, size: int, replace: bool) -> tuple[PendingCheckpoint, Version] | None:
        version = Version(next(self.world.numbers), size, "checkpoint")
        refusal, old = self.refusal(path, replace), self.identity(path)
        with self.expecting(refusal):
            pending = self.store.save(path, state_of(version.number, size), step=version.number, replace=replace)
        if refusal is not None:
            return None
        if old is not None:
            self.removed.add(old)
        return pending, version

    def identity(self, path: str) -> str | None:
        return self.store.stat(path).publication_id if path in self.live else None

    @rule(path=PATHS, size=SIZES, replace=st.booleans(), tier=st.sampled_from(["snapshot", *TIERS]))
    def save_and_wait(self, path: str, size: int, replace: bool, tier: str) -> None:
        saved = self._save(path, size, replace)
        if saved is None:
            return
        pending, version = saved
        if tier == "snapshot" or tier in self.down:
            pending.wait("snapshot", timeout_s=PATIENCE_S)
            pending.wait_published(timeout_s=PATIENCE_S)
        else:
            pending.wait(tier, timeout_s=PATIENCE_S)
            assert set(pending.durability) & as_safe_as(tier)
        self.live[path] = version

    @rule(path=PATHS, size=SIZES, replace=st.booleans(), seen=st.booleans())
    def save_and_crash(self, path: str, size: int, replace: bool, seen: bool) -> None:
        """Without `wait`, or with no more than `wait("snapshot")`, which promises nothing of the daemon's own death."""
        saved = self._save(path, size, replace)
        if saved is None:
            return
        pending, version = saved
        if seen:
            pending.wait("snapshot", timeout_s=PATIENCE_S)
        self.world.daemon.kill()
        self.world.start_daemon()
        self.adopt(pending, path, version)

    def adopt(self, pending: PendingCheckpoint, path: str, version: Version) -> None:
        """Whole or absent: once the daemon is back, the attempt has ended one way or the other."""
        try:
            pending.wait_published(timeout_s=PATIENCE_S)
        except AttemptAborted:
            if path in self.live:  # then the old version was not replaced
                self.removed.discard(self.store.stat(path).publication_id or "")
        else:
            self.live[path] = version

    @rule(path=PATHS, size=SIZES, replace=st.booleans())
    def put_and_get(self, path: str, size: int, replace: bool) -> None:
        version = Version(next(self.world.numbers), size, "file")
        local = self.world.base / "local"
        local.write_bytes(version.content())
        refusal, old = self.refusal(path, replace), self.identity(path)
        with self.expecting(refusal):
            self.store.put(local, path, replace=replace, timeout_s=PATIENCE_S)
        if refusal is None:
            self.removed.update({old} if old is not None else ())
            self.live[path] = version

    @rule(path=PATHS, recursive=st.booleans())
    def rm(self, path: str, recursive: bool) -> None:
        below = [other for other in self.live if other == path or other.startswith(path + "/")]
        if not below:
            with pytest.raises((NotFound, PathConflict)):
                self.store.rm(path, recursive=recursive)
            return
        if path not in self.live and not recursive:
            with pytest.raises(PathConflict):
                self.store.rm(path)
            return
        self.removed.update(self.store.stat(other).publication_id or "" for other in below)
        assert self.store.rm(path, recursive=recursive) == sorted(below)
        for other in below:
            del self.live[other]

    # --- reading ---------------------------------------------------------------------------------------------------------------

    @rule(path=PATHS)
    def load_a_part_and_into(self, path: str) -> None:
        if path not in self.live or self.live[path].kind != "checkpoint":
            return
        version = self.live[path]
        expected = state_of(version.number, version.size)
        part = self.store.load(path, only="model/b", rank=0)
        assert set(part) == {"model"}
        assert np.array_equal(part["model"]["b"], expected["model"]["b"])
        into = state_of(0, version.size)
        weights = into["model"]["w"]
        assert self.store.load(path, into=into)["model"]["w"] is weights
        assert np.array_equal(weights, expected["model"]["w"])
        assert into["version"] == version.number

    @rule(tier=st.sampled_from(TIERS))
    def wait_for_everything(self, tier: str) -> None:
        """What `wait` says of a tier holds for every door: `stat` says it too, and its record is on the disk of each such tier."""
        if tier in self.down:
            return
        for path in self.live:
            found = self.store.wait(path, tier, timeout_s=PATIENCE_S)
            assert set(found.durability) & as_safe_as(tier)
            assert set(self.store.stat(path).durability) & as_safe_as(tier)
            for safe in set(found.durability) - self.down - {"nvme"}:
                assert (self.world.folder(safe) / "records" / f"{found.publication_id}.jsonl").exists()

    @rule()
    def verify(self) -> None:
        """Every replica that the catalog counts is what was saved, in the tiers that answer; what an emptied disk lost is brought back."""
        *lines, last = self.store.verify("/")
        lost = [line for line in lines if line.tier == "nvme" and line.problem == "it is missing" and line.repaired]
        assert [line for line in lines if line.problem and line.tier not in self.down and line not in lost] == []
        assert last.done

    # --- faults ----------------------------------------------------------------------------------------------------------------

    @rule()
    def crash(self) -> None:
        self.world.daemon.kill()
        self.world.start_daemon()

    @rule()
    def restart(self) -> None:
        assert self.world.daemon.stop() == 0
        self.world.start_daemon()

    @rule()
    def another_client(self) -> None:
        self.store.close()
        self.store = self.world.connect()

    @precondition(lambda self: not self.down)
    @rule()
    def pfs_goes_away(self) -> None:
        """A file stands where its folder was, as when a mount is gone: nothing can be read or written there."""
        folder = self.world.folder("pfs")
        folder.rename(folder.with_suffix(".away"))
        folder.write_text("not mounted")
        self.down.add("pfs")

    @precondition(lambda self: self.down)
    @rule()
    def pfs_comes_back(self) -> None:
        folder = self.world.folder("pfs")
        folder.unlink()
        folder.with_suffix(".away").rename(folder)
        self.down.clear()

    @rule(tier=st.sampled_from(["pfs", "object"]))
    def nvme_is_lost(self, tier: str) -> None:
        """Once all is deeper: the disk is replaced by an empty one, while the daemon is down; reading recalls what was there."""
        if tier in self.down:
            return
        for path in self.live:
            self.store.wait(path, tier, timeout_s=PATIENCE_S)
        self.world.daemon.kill()
        shutil.rmtree(self.world.folder("nvme"))
        self.world.start_daemon()

    # --- what must hold after each ---------------------------------------------------------------------------------------------

    @invariant()
    def the_namespace_is_the_models(self) -> None:
        if not hasattr(self, "world"):
            return
        seen = dict(self.walk("/"))
        assert {path: entry.kind for path, entry in seen.items()} == {path: v.kind for path, v in self.live.items()}
        assert not {entry.publication_id for entry in seen.values()} & self.removed, "something that was removed came back"
        for path, version in self.live.items():
            if version.kind == "checkpoint":
                assert seen[path].step == version.number
            self.check_content(path, version)

    def walk(self, folder: str) -> Iterator[tuple[str, Any]]:
        for entry in self.store.ls(folder):
            if entry.publication_id is None:
                yield from self.walk(entry.path)
            else:
                yield entry.path, entry

    def check_content(self, path: str, version: Version) -> None:
        if version.kind == "file":
            got = self.world.base / "got"
            self.store.get(path, got, replace=True)
            assert got.read_bytes() == version.content()
            return
        found, expected = self.store.load(path), state_of(version.number, version.size)
        assert (found["version"], found["notes"]) == (expected["version"], expected["notes"])
        for name in ("w", "b"):
            assert np.array_equal(found["model"][name], expected["model"][name])


def run_machine(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, phases=PHASES, suppress_health_check=CHECKS, print_blob=True
        ),
    )


def test_the_store_agrees_with_a_plain_dictionary_whatever_is_done_in_whatever_order() -> None:
    run_machine(int(os.environ.get("CKPTSTORE_TEST_EXAMPLES", "10")), 20)


@pytest.mark.soak
def test_the_store_agrees_with_a_plain_dictionary_for_long() -> None:
    run_machine(200, 50)
