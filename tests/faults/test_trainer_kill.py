"""SIGKILL of the trainer at random moments: a checkpoint is published whole or absent, and published if `snapshot` was acknowledged.

The trainer is a process of its own, forked from a server that has the imports done, so that two hundred deaths cost seconds. It says
over a pipe what it has begun and what was acknowledged; the kill comes after a random time, seeded. Every third trainer guards its saves:
its optimizer changes what is being copied as soon as it may.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

import ckptstore
from ckptstore.errors import NotFound
from ckptstore_client.store import Store
from tests import forking
from tests.daemon_process import DaemonProcess, write_config
from tests.until import until

KILLS = int(os.environ.get("CKPTSTORE_TEST_KILLS", "30"))
SOAK_KILLS = 200
SEED = int(os.environ.get("CKPTSTORE_TEST_SEED", "20"))
#: The longest time until death, in seconds: a save takes some milliseconds.
LONGEST_LIFE_S = 0.15
#: Two and a half blocks: a torn snapshot would show in the values, a torn file in the checksums.
VALUES = (10 << 20) // 8


@dataclass
class Life:
    begun: list[int] = field(default_factory=list)
    snapshots: list[int] = field(default_factory=list)


class Counting(torch.optim.Optimizer):
    """Each step adds one to every value."""

    def __init__(self, first: int) -> None:
        self.values = torch.full((VALUES,), first, dtype=torch.int64)
        super().__init__([self.values], {})

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.values.add_(1)


def train(home: str, life: int, pipe: Connection) -> None:
    """Saves until it is killed; a small save and a large one in turn, two of them overlapping."""
    store = ckptstore.connect(home=home, start=False)
    optimizer = Counting(life * 10_000) if life % 3 == 2 else None
    last = None
    for step in range(10_000):
        pipe.send(("begun", step))
        size = VALUES if step % 3 == 0 else 1000
        values = np.full(size, life * 10_000 + step, dtype=np.int64) if optimizer is None else optimizer.values
        pending = store.save(f"/killed/{life}/{step}", {"life": life, "step": step, "x": values}, step=step, guard=optimizer)
        if optimizer is not None:
            optimizer.step()
        if last is not None:
            last[1].wait("snapshot", timeout_s=30)
            pipe.send(("snapshot", last[0]))
        last = (step, pending)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    home = tmp_path_factory.mktemp("kills")
    write_config(home, tiers=[{"name": "nvme", "kind": "posix", "path": home / "nvme"}], grace_s=0)
    with DaemonProcess(home), ckptstore.connect(home=home, start=False) as connected:
        yield connected


def live_and_die(home: Path, life: int, life_s: float) -> Life:
    """One trainer's life. Every other life's time begins with its first save, the rest's with its first acknowledged one."""
    mine, its = forking.CONTEXT.Pipe(duplex=False)
    process = forking.CONTEXT.Process(target=train, args=(str(home), life, its))
    process.start()
    its.close()
    seen = Life()
    deadline: float | None = None
    while True:
        left_s = 60.0 if deadline is None else deadline - time.monotonic()
        if left_s <= 0 or not mine.poll(left_s):
            break
        kind, step = mine.recv()
        (seen.begun if kind == "begun" else seen.snapshots).append(step)
        if life % 2 == 0 or seen.snapshots:
            deadline = deadline or time.monotonic() + life_s
    process.kill()
    process.join()
    while mine.poll(0):
        try:
            kind, step = mine.recv()
        except EOFError:
            break
        (seen.begun if kind == "begun" else seen.snapshots).append(step)
    return seen


def load_if_published(store: Store, path: str) -> dict[str, object] | None:
    try:
        loaded: dict[str, object] = store.load(path)
    except NotFound:
        return None
    return loaded


def until_quiet(store: Store) -> None:
    """Nothing handed over is still on its way, and the dead trainer's attempts are over."""
    until("attempts of a dead trainer end", lambda: not store.status().attempts, pause_s=0.01)


@pytest.mark.parametrize("kills", [KILLS, pytest.param(SOAK_KILLS, marks=pytest.mark.soak)])
def test_a_checkpoint_of_a_killed_trainer_is_whole_or_absent(store: Store, kills: int) -> None:
    home = Path(store.status().home)
    chance = random.Random(SEED)
    published = acknowledged = 0
    for life in range(kills):
        seen = live_and_die(home, life, chance.uniform(0.0, LONGEST_LIFE_S))
        until_quiet(store)
        found = check_life(store, life, seen)
        published, acknowledged = published + found, acknowledged + len(seen.snapshots)
        if found:
            store.rm(f"/killed/{life}", recursive=True)
    assert acknowledged > kills / 4, f"only {acknowledged} snapshots were acknowledged: the kills came too early to show anything"
    assert published >= acknowledged
    memory = store.status().memory
    assert memory.lent_bytes == 0 and memory.held_bytes == 0, f"slots of dead trainers are still lent: {memory}"


def check_life(store: Store, life: int, seen: Life) -> int:
    """How many of its checkpoints are published; each must be whole, and those that were acknowledged must be among them."""
    published = 0
    for step in seen.begun:
        where = f"seed {SEED}, life {life}, step {step}"
        loaded = load_if_published(store, f"/killed/{life}/{step}")
        if loaded is None:
            assert step not in seen.snapshots, f"{where}: wait('snapshot') had returned"
            continue
        published += 1
        values = np.asarray(loaded["x"])
        assert (loaded["life"], loaded["step"]) == (life, step), where
        guarded = life % 3 == 2
        assert len(values) == (VALUES if guarded or step % 3 == 0 else 1000) and np.all(values == life * 10_000 + step), f"{where}: torn"
    return published
