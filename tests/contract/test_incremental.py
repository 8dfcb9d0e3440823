"""`save(incremental=True)`: only what changed is written, and everything is loaded as it was saved, from memory, disk and the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore
from ckptstore_client import Store
from tests.daemon_process import write_config
from tests.faults.forked_daemon import ForkedDaemon

WAIT_S = 60.0
BLOCK = 4 << 20


@dataclass
class Place:
    base: Path
    daemon: ForkedDaemon

    def connect(self) -> Store:
        return ckptstore.connect(home=self.base / "home", start=False)

    def restart(self) -> None:
        """Without its memory, and whatever it had cached."""
        assert self.daemon.stop() == 0
        self.daemon = ForkedDaemon(self.base / "home").start()

    def objects(self, tier: str) -> dict[str, int]:
        """The files of ranks that lie in a tier, and their sizes."""
        root = self.base / tier
        return {str(file.relative_to(root)): file.stat().st_size for file in root.rglob("rank-*") if file.is_file()}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    tiers: list[dict[str, Any]] = [
        {"name": "nvme", "kind": "posix", "path": tmp_path / "nvme"},
        {"name": "pfs", "kind": "posix", "path": tmp_path / "pfs", "shared": True},
    ]
    write_config(tmp_path / "home", tiers=tiers, grace_s=0, memory={"limit": "512MiB", "huge_pages": False, "idle_release_s": 600})
    place = Place(tmp_path, ForkedDaemon(tmp_path / "home").start())
    yield place
    place.daemon.kill()


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with place.connect() as store:
        yield store


def noise(seed: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def state_of(step: int, *, frozen: int = 3, size: int = BLOCK + 12_345) -> dict[str, Any]:
    """Some tensors that stay, and one that changes with each step."""
    base = {f"layer{number}": noise(number, size + number) for number in range(frozen)}
    return {"base": base, "lora": noise(1000 + step, size // 10), "step": step}


def save(store: Store, path: str, state: Any, tier: str = "nvme", **options: Any) -> None:
    store.save(path, state, incremental=True, rank=0, world_size=1, **options).wait(tier, timeout_s=WAIT_S)


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
    else:
        assert found == expected


def test_only_what_changed_is_written_and_all_of_it_is_loaded(place: Place, store: Store) -> None:
    for step in range(3):
        save(store, f"/run/{step}", state_of(step), "pfs")
    for tier in ("nvme", "pfs"):
        sizes = {name.split("/")[2]: size for name, size in place.objects(tier).items()}
        whole, changed = sizes["0"], BLOCK // 10
        assert sizes["1"] < 1.02 * changed + 8192
        assert sizes["2"] < 1.02 * changed + 8192
        assert whole > 3 * BLOCK
    for step in range(3):
        assert_same(store.load(f"/run/{step}"), state_of(step))
    place.restart()
    with place.connect() as cold:
        for step in range(3):
            assert_same(cold.load(f"/run/{step}"), state_of(step))
