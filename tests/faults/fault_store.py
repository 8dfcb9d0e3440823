"""A store under test whose tiers can be made to fail: a daemon of its own process, a folder of its own, and honest looks past it.

Whoever says "drained" or "not lost" in these suites has not asked the daemon: `objects_below` and `objects_in_bucket` look at the files
and at the bucket themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import ckptstore
from ckptstore.errors import NotFound
from ckptstore.wire import Status, TierStatus, VerifyLine
from ckptstore_client import Store
from tests.daemon_process import DaemonProcess, write_config
from tests.files import files_below
from tests.forking import Rigging


def state_of(value: int, *, size_bytes: int = 1 << 20) -> dict[str, Any]:
    """A state whose every byte depends on `value`."""
    generator = np.random.default_rng(value)
    return {"w": generator.integers(0, 256, size_bytes, dtype=np.uint8), "step": value, "name": f"state {value}"}


def assert_state(found: Any, value: int, *, size_bytes: int = 1 << 20) -> None:
    expected = state_of(value, size_bytes=size_bytes)
    assert np.array_equal(found["w"], expected["w"])
    assert (found["step"], found["name"]) == (expected["step"], expected["name"])


@dataclass
class FaultStore:
    """One home and its daemon. `start` and `kill` may alternate; `connect` gives stores that end with the `with` block."""

    home: Path
    tiers: list[dict[str, Any]]
    environment: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    rigging: Rigging | None = None
    daemon: DaemonProcess = field(init=False)
    _stores: list[Store] = field(default_factory=list)

    def __post_init__(self) -> None:
        defaults: dict[str, Any] = {"grace_s": 0, "memory": {"limit": "256MiB"}}
        write_config(self.home, tiers=self.tiers, **(defaults | self.settings))
        self.daemon = DaemonProcess(self.home, environment=self.environment, rigging=self.rigging)

    def start(self, failpoints: str = "") -> FaultStore:
        self.daemon.failpoints = failpoints
        self.daemon.start()
        return self

    def connect(self) -> Store:
        store = ckptstore.connect(home=self.home, start=False)
        self._stores.append(store)
        return store

    def __enter__(self) -> FaultStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.daemon.kill()
        for store in self._stores:
            store.close()

    def root(self, tier: str) -> Path:
        return next(Path(settings["path"]) for settings in self.tiers if settings["name"] == tier)


def posix_tier(name: str, path: Path, **settings: Any) -> dict[str, Any]:
    return {"name": name, "kind": "posix", "path": path, **settings}


def tier_status(status: Status, name: str) -> TierStatus:
    return next(tier for tier in status.tiers if tier.name == name)


def objects_below(root: Path) -> list[Path]:
    """The objects in a posix tier, as the file system has them."""
    return files_below(root / "objects")


def published(store: Store, path: str) -> bool:
    try:
        store.stat(path)
    except NotFound:
        return False
    return True


def verified(store: Store, path: str = "/") -> list[VerifyLine]:
    """The lines of `verify` that report a problem."""
    return [line for line in store.verify(path) if line.problem is not None]


@contextmanager
def process_ends(process: Any) -> Iterator[Any]:
    """Kill a child that a test started, however the test ends."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
