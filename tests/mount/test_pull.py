"""`pull`: plain local files of what is at a path, all at once, each a file of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ckptstore
from ckptstore.errors import AlreadyExists, InvalidInput, NotFound
from ckptstore.paths import join
from ckptstore.tree_messages import FileListing, TreeInfo
from ckptstore_bench.ports import free_port
from ckptstore_client import Store
from ckptstore_client.mount.local_folder import LocalFolder
from ckptstore_client.pull import Owner, pull
from tests.contract.store_place import TOKEN, start
from tests.daemon_process import DaemonProcess
from tests.e2e.shell import Shell
from tests.mount.mounts import names_in

DATA = os.urandom(20_000_001)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DaemonProcess, str]]:
    """A daemon with a model and two checkpoints, of which one tier is a recall away."""
    home, port, local = tmp_path_factory.mktemp("home"), free_port(), tmp_path_factory.mktemp("local")
    (local / "sub").mkdir()
    (local / "weights.bin").write_bytes(DATA)
    (local / "sub/config.json").write_text("{}")
    with start(home, port) as daemon, ckptstore.connect(home=home, start=False) as store:
        store.put(local, "/models/m").wait("pfs", timeout_s=60)
        for step in (1, 2):
            store.save(f"/run/step-{step}", {"w": np.full(10, step)}).wait("pfs", timeout_s=60)
        yield daemon, f"http://127.0.0.1:{port}"


@pytest.fixture(params=["local", "network"])
def store(served: tuple[DaemonProcess, str], request: pytest.FixtureRequest) -> Iterator[Store]:
    daemon, url = served
    opened = ckptstore.connect(home=daemon.home, start=False) if request.param == "local" else ckptstore.connect(url, token=TOKEN)
    with opened:
        yield opened


def test_a_folder_comes_whole_as_files_of_its_own(store: Store, served: tuple[DaemonProcess, str], tmp_path: Path) -> None:
    pulled = store.tree.pull("/models/m", tmp_path / "m")
    assert (pulled.files, pulled.size_bytes, pulled.current) == (2, len(DATA) + 2, False)
    assert (tmp_path / "m/weights.bin").read_bytes() == DATA and (tmp_path / "m/sub/config.json").read_text() == "{}"
    own = (tmp_path / "m/weights.bin").stat()
    stored = [place.stat() for place in (served[0].home / "nvme").rglob("*") if place.is_file()]
    assert own.st_nlink == 1 and all((own.st_dev, own.st_ino) != (other.st_dev, other.st_ino) for other in stored)
    assert abs(own.st_mtime - store.tree.look("/models/m/weights.bin").modified_s) < 0.01


def test_what_is_there_already_is_left_as_it_is_and_replaced_only_when_asked(store: Store, tmp_path: Path) -> None:
    store.tree.pull("/models/m", tmp_path / "m")
    before = (tmp_path / "m/weights.bin").stat().st_ino
    assert store.tree.pull("/models/m", tmp_path / "m").current
    assert (tmp_path / "m/weights.bin").stat().st_ino == before
    (tmp_path / "m/extra").touch()
    with pytest.raises(AlreadyExists):
        store.tree.pull("/models/m", tmp_path / "m")
    assert not store.tree.pull("/models/m", tmp_path / "m", replace=True).current
    assert sorted(names_in(tmp_path / "m")) == ["sub", "weights.bin"]


def test_latest_and_single_files_and_links_come_as_what_they_stand_for(store: Store, tmp_path: Path) -> None:
    pulled = store.tree.pull("/run/@latest", tmp_path / "step")
    assert pulled.path == "/run/step-2" and "checkpoint.json" in names_in(tmp_path / "step")
    store.tree.pull("/models/m/sub/config.json", tmp_path / "config.json")
    assert (tmp_path / "config.json").read_text() == "{}"
    store.tree.pull("/run", tmp_path / "run")
    assert (tmp_path / "run/@latest").readlink() == Path("step-2")
    with pytest.raises(NotFound):
        store.tree.pull("/nothing", tmp_path / "nothing")


def test_a_pull_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/good").write_bytes(DATA)
    (tmp_path / "source/gone").write_bytes(DATA)

    class LosesOne(LocalFolder):
        def open(self, path: str, version: str):  # type: ignore[no-untyped-def]
            if path.endswith("gone"):
                raise NotFound("it went", operation="open", subject=path)
            return super().open(path, version)

    with pytest.raises(NotFound):
        pull(LosesOne(tmp_path / "source"), "/", tmp_path / "pulled")
    assert names_in(tmp_path) == ["source"]


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    class Crafted(LocalFolder):
        def list(self, path: str, after: str | None) -> FileListing:
            return FileListing(entries=[TreeInfo(path=join(path, "../../escaped"), kind="file", size_bytes=1, version="1-1-1")])

    (tmp_path / "source").mkdir()
    with pytest.raises(InvalidInput):
        pull(Crafted(tmp_path / "source"), "/", tmp_path / "deep/er/pulled")
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away is root's")
def test_files_can_belong_to_the_user_of_a_container(store: Store, tmp_path: Path) -> None:
    store.tree.pull("/models/m", tmp_path / "m", owner=Owner(1234, 5678))
    assert {(place.stat().st_uid, place.stat().st_gid) for place in (tmp_path / "m", *(tmp_path / "m").rglob("*"))} == {(1234, 5678)}


def test_the_command_says_what_a_bind_mount_needs(served: tuple[DaemonProcess, str], tmp_path: Path) -> None:
    shell = Shell(served[0].home)
    told = shell.ok("pull", "/models/m", tmp_path / "m", "--target", "/models", "--json").document
    assert told["bind"] == f"type=bind,source={tmp_path / 'm'},target=/models,readonly"
    assert (told["files"], told["path"], told["current"]) == (2, "/models/m", False)
    assert "already there" in shell.ok("pull", "/models/m", tmp_path / "m").out
    assert shell("pull", "/models/m", tmp_path / "m", "--owner", "somebody").code == InvalidInput.exit_code
