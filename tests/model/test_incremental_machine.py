"""Chains of incremental checkpoints against a plain dictionary: whatever is saved, removed, evicted, lost and rebuilt in between, what was
not removed is loaded as it was saved, and when all is removed, nothing is left in any tier.

A real daemon in three tiers, the first of which is too small for what is saved. Each state has a few tensors of which a save changes
some; a rank's tensors so come to lie in objects of many earlier checkpoints, which are removed in any order.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import ckptstore
from ckptstore.errors import CkptStoreError
from ckptstore_client.store import Store
from tests.daemon_process import write_config
from tests.faults.crash_story import until
from tests.faults.forked_daemon import ForkedDaemon, run_rebuild
from tests.files import files_below

TIERS = ("nvme", "pfs", "object")
TENSORS = ("embedding", "layer0", "layer1", "head")
TENSOR_BYTES = 20_000
#: Three whole states.
NVME_CAPACITY_BYTES = 250_000
FOLDERS = ("/run", "/other")
PATIENCE_S = 120.0
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
CHECKS = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)

Versions = dict[str, int]  # tensor → which content


def state_of(versions: Versions, step: int) -> dict[str, Any]:
    return {name: tensor(name, version) for name, version in versions.items()} | {"step": step}


def tensor(name: str, version: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    size = TENSOR_BYTES + TENSORS.index(name)
    return np.random.default_rng((TENSORS.index(name), version)).integers(0, 256, size, dtype=np.uint8)


class ChainMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="ckptstore-chain-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        tiers: list[dict[str, Any]] = [
            {
                "name": "nvme", "kind": "posix", "path": self.base / "nvme",
                "capacity": NVME_CAPACITY_BYTES, "high_water": 0.6, "low_water": 0.3,
            },
            {"name": "pfs", "kind": "posix", "path": self.base / "pfs", "shared": True},
            {"name": "object", "kind": "object", "url": f"file://{self.base / 'object'}"},
        ]  # fmt: skip
        write_config(self.home, tiers=tiers, grace_s=0, memory={"limit": "16MiB", "huge_pages": False, "idle_release_s": 600})
        self.daemon = ForkedDaemon(self.home).start()
        self.store = self.connect()
        self.live: dict[str, tuple[Versions, int]] = {}
        self.now: dict[str, Versions] = {folder: dict.fromkeys(TENSORS, 0) for folder in FOLDERS}
        self.step = 0

    @property
    def home(self) -> Path:
        return self.base / "home"

    def connect(self) -> Store:
        return ckptstore.connect(home=self.home, start=False)

    def start(self) -> None:
        self.daemon = ForkedDaemon(self.home).start()
        assert self.daemon.alive, self.daemon.log()[-3000:]

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        try:
            if self.daemon.alive:
                self.remove_everything()
        finally:
            with suppress(CkptStoreError):
                self.store.close()
            self.daemon.kill()
            shutil.rmtree(self.base, ignore_errors=True)

    def remove_everything(self) -> None:
        for path in list(self.live):
            self.store.rm(path)
        until(lambda: not list(self.objects()), "something is left that nobody needs", self.store)

    def objects(self) -> Iterator[Path]:
        for tier in TIERS:
            yield from files_below(self.base / tier / "objects")

    # --- saving and removing ---------------------------------------------------------------------------------------------------

    @rule(folder=st.sampled_from(FOLDERS), changed=st.sets(st.sampled_from(TENSORS)), tier=st.sampled_from(TIERS), full=st.integers(0, 5))
    def save(self, folder: str, changed: set[str], tier: str, full: int) -> None:
        """One in six is not incremental."""
        self.step += 1
        versions = self.now[folder] = {n: v + 1 if n in changed else v for n, v in self.now[folder].items()}
        path = f"{folder}/{self.step}"
        pending = self.store.save(path, state_of(versions, self.step), incremental=full != 0, rank=0, world_size=1)
        pending.wait(tier, timeout_s=PATIENCE_S)
        self.live[path] = versions, self.step

    @rule(folder=st.sampled_from(FOLDERS), changed=st.sampled_from(TENSORS))
    def save_and_crash(self, folder: str, changed: str) -> None:
        self.step += 1
        versions = self.now[folder] | {changed: self.now[folder][changed] + 1}
        path = f"{folder}/{self.step}"
        pending = self.store.save(path, state_of(versions, self.step), incremental=True, rank=0, world_size=1)
        self.crash()
        with suppress(CkptStoreError):  # whole or absent: an attempt whose bytes were in memory alone is aborted
            pending.wait_published(timeout_s=PATIENCE_S)
            self.live[path] = versions, self.step
            self.now[folder] = versions

    @rule(which=st.integers(0, 11))
    def rm(self, which: int) -> None:
        if self.live:
            path = sorted(self.live)[which % len(self.live)]
            self.store.rm(path)
            del self.live[path]

    # --- what happens to daemons and disks ---------------------------------------------------------------------------------------

    @rule()
    def crash(self) -> None:
        self.daemon.kill()
        self.start()

    @rule(tier=st.sampled_from(["pfs", "object"]))
    def lose_nvme(self, tier: str) -> None:
        for path in self.live:
            self.store.wait(path, tier, timeout_s=PATIENCE_S)
        self.daemon.kill()
        shutil.rmtree(self.base / "nvme")
        self.start()

    @rule()
    def rebuild_the_catalog(self) -> None:
        """Once every checkpoint has its record somewhere."""
        for path in self.live:
            self.store.wait(path, "nvme", timeout_s=PATIENCE_S)
        assert self.daemon.stop() == 0
        for file in self.home.glob("catalog.sqlite3*"):
            file.unlink()
        assert run_rebuild(self.home) == 0, self.daemon.log()[-3000:]
        self.start()

    @rule()
    def verify(self) -> None:
        *lines, last = self.store.verify("/")
        assert [line for line in lines if line.problem] == []
        assert last.done

    # --- what must hold ---------------------------------------------------------------------------------------------------------

    @invariant()
    def everything_is_loaded_as_it_was_saved(self) -> None:
        for path, (versions, step) in getattr(self, "live", {}).items():
            found, expected = self.store.load(path), state_of(versions, step)
            assert found.keys() == expected.keys()
            assert found["step"] == step
            assert all(np.array_equal(found[name], expected[name]) for name in TENSORS), path


def run_machine(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        ChainMachine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, phases=PHASES, suppress_health_check=CHECKS, print_blob=True
        ),
    )


def test_any_checkpoint_of_a_chain_may_go_in_any_order_and_the_others_stay_loadable() -> None:
    run_machine(int(os.environ.get("CKPTSTORE_TEST_EXAMPLES", "4")), 12)


@pytest.mark.soak
def test_any_checkpoint_of_a_chain_may_go_for_long() -> None:
    run_machine(100, 40)
