"""Tiers that compress, and settings that change: what was saved comes back, takes less room, and is mended and rebuilt as ever."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore
from ckptstore_client.store import Store
from tests.daemon_process import DaemonProcess, write_config
from tests.e2e.shell import Shell
from tests.faults.forked_daemon import run_rebuild
from tests.until import PATIENCE_S, until


def state(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    weights = (random.standard_normal(1_600_000) * 0.02).astype(np.float32)  # 6.4 MB: two blocks
    return {"model": {"w": weights, "b": weights[:1001].astype(np.float16)}, "seed": seed, "mask": np.arange(777, dtype=np.uint8)}


def same(found: dict[str, Any], seed: int) -> bool:
    expected = state(seed)
    return found["seed"] == seed and all(
        np.array_equal(a, b)
        for a, b in (
            (found["model"]["w"], expected["model"]["w"]),
            (found["model"]["b"], expected["model"]["b"]),
            (found["mask"], expected["mask"]),
        )
    )


class House:
    """A home, its own NVMe, and two shared tiers below one folder."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.home = base / "home"

    def configure(self, pfs: str, deep: str) -> None:
        tiers = [
            {"name": "nvme", "kind": "posix", "path": self.base / "nvme"},
            {"name": "pfs", "kind": "posix", "path": self.base / "pfs", "shared": True, "compression": pfs},
            {"name": "object", "kind": "object", "url": f"file://{self.base / 'object'}", "compression": deep},
        ]
        write_config(self.home, tiers=tiers, grace_s=0, memory={"limit": "64MiB", "huge_pages": False})

    def connect(self) -> Store:
        return ckptstore.connect(home=self.home, start=False)

    def stored(self, tier: str, path: str) -> Path:
        (file,) = (file for file in (self.base / tier / "objects" / path[1:]).iterdir() if file.name.startswith("rank"))
        return file

    def lose_nvme(self) -> None:
        shutil.rmtree(self.base / "nvme" / "objects")


def save(store: Store, path: str, seed: int) -> None:
    """And have it in both shared tiers: `wait` is content with the deeper one."""
    store.save(path, state(seed), rank=0, world_size=1).wait("object", timeout_s=PATIENCE_S)
    until("the pfs has it, too", lambda: {"pfs", "object"} <= set(store.stat(path).durability))


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_settings_change_and_everything_stays_readable_verified_mended_and_rebuilt(house: House) -> None:
    for seed, settings in enumerate([("float", "zstd"), ("zstd", "none"), ("none", "float")], start=1):
        house.configure(*settings)
        with DaemonProcess(house.home) as daemon, house.connect() as store:
            save(store, f"/run/{seed}", seed)
            taken = store.stat(f"/run/{seed}").stored_bytes
            for tier, compression in zip(("pfs", "object"), settings, strict=True):
                stored = house.stored(tier, f"/run/{seed}").stat().st_size
                if compression == "none":
                    assert tier not in taken
                else:
                    assert stored <= taken[tier] < store.stat(f"/run/{seed}").size_bytes
                    assert stored < 0.95 * state(seed)["model"]["w"].nbytes
            assert daemon.stop() == 0

    house.lose_nvme()
    with DaemonProcess(house.home) as daemon, house.connect() as store:
        assert [same(store.load(f"/run/{seed}"), seed) for seed in (1, 2, 3)] == [True] * 3
        list(store.verify("/"))  # notices what NVMe has lost, and brings it back
        assert [line for line in store.verify("/") if line.problem] == []
        for seed, tier in ((1, "pfs"), (2, "pfs"), (3, "object")):
            damaged = house.stored(tier, f"/run/{seed}")
            data = bytearray(damaged.read_bytes())
            data[len(data) // 2] ^= 0x10
            damaged.write_bytes(data)
            lines = [line for line in store.verify(f"/run/{seed}") if line.problem]
            assert [(line.tier, line.repaired) for line in lines] == [(tier, True)]
            assert [line for line in store.verify(f"/run/{seed}") if line.problem] == []
        assert daemon.stop() == 0

    shutil.rmtree(house.base / "nvme")
    for file in house.home.glob("catalog.sqlite3*"):
        file.unlink()
    assert run_rebuild(house.home) == 0
    with DaemonProcess(house.home), house.connect() as store:
        assert [same(store.load(f"/run/{seed}"), seed) for seed in (1, 2, 3)] == [True] * 3
        assert set(store.stat("/run/3").stored_bytes) == {"object"}


def test_what_an_earlier_setting_left_plain_is_opened_and_what_it_compressed_is_not(house: House) -> None:
    house.configure("none", "none")
    with DaemonProcess(house.home) as daemon, house.connect() as store:
        save(store, "/run/plain", 1)
        assert daemon.stop() == 0
    house.configure("float", "none")
    with DaemonProcess(house.home) as daemon, house.connect() as store:
        save(store, "/run/packed", 2)
        assert openable(daemon, store, "/run/plain")["pfs"]
        assert not openable(daemon, store, "/run/packed")["pfs"]
        assert openable(daemon, store, "/run/packed")["nvme"]
        taken = store.stat("/run/packed").stored_bytes["pfs"]
        told = Shell(house.home).ok("stat", "/run/packed").out
        assert re.search(rf"^in pfs +[\d.]+ MiB compressed \({taken:,} bytes\)$", told, re.MULTILINE)
        assert "compressed" not in Shell(house.home).ok("stat", "/run/plain").out


def test_compressing_the_nodes_own_tier_is_warned_of(house: House) -> None:
    house.configure("float", "zstd")
    shell = Shell(house.home)
    assert "decoded by the daemon at every read" not in shell.ok("config", "check").err
    write_config(house.home, tiers=[{"name": "nvme", "kind": "posix", "path": house.base / "nvme", "compression": "float"}])
    assert "'nvme' is of this node and compressed" in shell.ok("config", "check").err


def openable(daemon: DaemonProcess, store: Store, path: str) -> dict[str, bool]:
    """Tiers with a replica of the rank's file, and whether the daemon hands out a descriptor of it."""
    with daemon.http() as http:
        files = http.get(f"/v1/publications/{store.stat(path).publication_id}/files").json()["files"]
        (object_id,) = (file["object_id"] for file in files if file["name"].startswith("rank"))
        replicas = http.get(f"/v1/objects/{object_id}/replicas").json()["replicas"]
    return {replica["tier"]: replica["openable"] for replica in replicas}
