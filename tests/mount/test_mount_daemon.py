"""The mount of a daemon's tree: what is published shows at once, hot files are the kernel's, and a daemon that dies breaks nothing."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import ckptstore
from ckptstore_client import Store
from tests.daemon_process import DaemonProcess, write_config
from tests.mount.mounts import Mounted, can_mount, names_in
from tests.until import until

pytestmark = can_mount

DATA = os.urandom(9_000_001)
OTHER = os.urandom(5_000_001)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """Two tiers; the second is what a recall comes from."""
    home = tmp_path_factory.mktemp("home")
    tiers = [
        {"name": "nvme", "kind": "posix", "path": home / "nvme"},
        {"name": "pfs", "kind": "posix", "path": home / "pfs", "shared": True},
    ]
    write_config(home, tiers=tiers, grace_s=300, memory={"limit": "256MiB"})
    with DaemonProcess(home) as process:
        yield process


@pytest.fixture
def store(daemon: DaemonProcess) -> Iterator[Store]:
    with ckptstore.connect(home=daemon.home, start=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def mounted(daemon: DaemonProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with Mounted(tmp_path_factory.mktemp("mount"), source=daemon.home, plain=False) as mount:
        yield mount


def put(store: Store, tmp_path: Path, path: str, data: bytes) -> None:
    local = tmp_path / "local"
    local.write_bytes(data)
    store.put(local, path, replace=True)


def test_what_is_published_replaced_and_removed_shows_at_once(mounted: Mounted, store: Store, tmp_path: Path) -> None:
    """At once: when `put` and `rm` have returned, without any waiting."""
    file = mounted / "fresh/file"
    until("changes are told", lambda: not file.exists())
    for turn in range(5):
        assert not file.exists()
        put(store, tmp_path, "/fresh/file", DATA)
        assert file.read_bytes() == DATA
        with open(file, "rb", buffering=0) as opened:
            put(store, tmp_path, "/fresh/file", OTHER + b"%d" % turn)
            assert file.stat().st_size == len(OTHER) + 1
            assert file.read_bytes() == OTHER + b"%d" % turn
            assert opened.read() == DATA
        store.rm("/fresh", recursive=True)
        assert not file.exists() and "fresh" not in names_in(mounted.path)


def test_a_published_file_is_hot_and_its_attributes_tell_what_it_is(mounted: Mounted, store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "/hot/file", DATA)
    file = mounted / "hot/file"
    until("it shows", file.exists)
    with open(file, "rb", buffering=0) as opened, mounted.nobody_serving():
        assert opened.read() == DATA
    store.wait("/hot/file", "pfs", timeout_s=60)
    told = {name.rpartition(".")[2]: os.getxattr(file, name).decode() for name in os.listxattr(file)}
    assert told["path"] == "/hot/file" and told["object"] == told["version"] and told["tier"] == "local"
    assert "nvme" in told["durability"]


def test_latest_is_a_link_that_follows_the_run(mounted: Mounted, store: Store) -> None:
    for step in (1, 2):
        store.save(f"/run/step-{step}", {"w": np.full(1000, step)}).wait("nvme", timeout_s=60)
        link = mounted / "run/@latest"
        until("the link follows", lambda: link.is_symlink() and link.readlink() == Path(f"step-{step}"))  # noqa: B023
    assert names_in(mounted / "run") == ["@latest", "step-1", "step-2"]
    (file,) = (mounted / "run/@latest").glob("rank-*.safetensors")
    with safe_open(file, "numpy") as tensors:
        assert all((tensors.get_tensor(key) == 2).all() for key in tensors.keys())  # noqa: SIM118


def test_a_file_that_lies_only_in_a_deeper_tier_is_read_while_it_arrives(
    daemon: DaemonProcess, mounted: Mounted, store: Store, tmp_path: Path
) -> None:
    put(store, tmp_path, "/cold/file", DATA)
    store.wait("/cold/file", "pfs", timeout_s=60)
    (stored,) = (daemon.home / "nvme/objects/cold").glob("file~*")
    stored.unlink()
    until("it shows", (mounted / "cold/file").exists)
    readers: list[bytes] = []
    threads = [threading.Thread(target=lambda: readers.append((mounted / "cold/file").read_bytes())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert readers == [DATA] * 8


def test_programs_read_a_model_as_from_a_disk(mounted: Mounted, store: Store, tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    rng = np.random.default_rng(7)
    weights = {f"layer.{number}.weight": rng.standard_normal((256, 256)).astype(np.float32) for number in range(12)}
    save_file(weights, model / "model.safetensors")
    (model / "sub/config.json").write_text('{"a": 1}')
    np.save(model / "array.npy", weights["layer.0.weight"])
    store.put(model, "/models/tiny")
    seen = mounted / "models/tiny"
    until("it shows", lambda: (seen / "sub/config.json").exists())
    with safe_open(seen / "model.safetensors", "numpy") as tensors:
        assert all((tensors.get_tensor(key) == value).all() for key, value in weights.items())
    assert (np.load(seen / "array.npy", mmap_mode="r") == weights["layer.0.weight"]).all()
    assert (np.memmap(seen / "model.safetensors", mode="r") == np.fromfile(model / "model.safetensors", dtype=np.uint8)).all()
    subprocess.run(["cp", "-r", seen, tmp_path / "copied"], check=True, timeout=60)
    subprocess.run(["diff", "-r", model, tmp_path / "copied"], check=True, timeout=60)
    for _ in range(2):  # the second time it finds all as it should be
        subprocess.run(["rsync", "-a", "--checksum", f"{seen}/", tmp_path / "synced/"], check=True, timeout=60)
    subprocess.run(["diff", "-r", model, tmp_path / "synced"], check=True, timeout=60)
    dd = ["dd", f"if={seen}/model.safetensors", f"of={tmp_path}/dd", "bs=100k", "iflag=direct", "status=none"]
    subprocess.run(dd, check=True, timeout=60)
    assert (tmp_path / "dd").read_bytes() == (model / "model.safetensors").read_bytes()
    told = subprocess.run(["sha256sum", seen / "model.safetensors"], capture_output=True, text=True, check=True, timeout=60).stdout
    assert told.split()[0] == hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    for _ in range(20):  # as git does: everything's status, again and again
        assert {place.name for place in seen.rglob("*") if place.stat()} == {"array.npy", "config.json", "model.safetensors", "sub"}


def test_a_daemon_that_is_killed_breaks_no_open_file_and_is_waited_for(
    daemon: DaemonProcess, mounted: Mounted, store: Store, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        put(store, tmp_path, f"/killed/{name}", DATA)
        store.wait(f"/killed/{name}", "pfs", timeout_s=60)
        (stored,) = (daemon.home / "nvme/objects/killed").glob(f"{name}~*")
        stored.unlink()
    until("it shows", (mounted / "killed/two").exists)
    with open(mounted / "killed/one", "rb", buffering=0) as cold:
        assert cold.read(100) == DATA[:100]
        daemon.kill()
        answers: list[bytes] = []
        late = threading.Thread(target=lambda: answers.append((mounted / "killed/two").read_bytes()))
        late.start()
        daemon.start()
        assert cold.read() == DATA[100:]
        late.join()
        assert answers == [DATA]
    put(store, tmp_path, "/killed/three", OTHER)
    until("changes are told again", lambda: (mounted / "killed/three").exists())
