"""`ckptstore mount` and `umount` as people, systemd and containers call them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptstore
from ckptstore import errors
from ckptstore_client.mount import device
from tests.daemon_process import DaemonProcess, write_config
from tests.e2e.shell import Shell
from tests.mount.mounts import can_mount, names_in
from tests.until import until

pytestmark = can_mount

DATA = os.urandom(100_000)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    home = tmp_path_factory.mktemp("home")
    write_config(home, tiers=[{"name": "nvme", "kind": "posix", "path": home / "nvme"}])
    (home / "file").write_bytes(DATA)
    with DaemonProcess(home), ckptstore.connect(home=home, start=False) as store:
        store.put(home / "file", "/models/a/weights.bin")
        store.put(home / "file", "/secret/b")
        yield Shell(home)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, with nothing mounted there afterwards."""
    folder = tmp_path / "models"
    folder.mkdir()
    yield folder
    if device.device_of(folder) is not None:
        device.unmount(folder, lazy=True)


def test_a_mount_is_served_when_the_command_returns_and_gone_after_umount(shell: Shell, place: Path) -> None:
    told = shell.ok("mount", place, "--path", "/models", "--json").document
    assert (told["mountpoint"], told["root"]) == (str(place), "/models") and told["pid"] > 0
    assert (place / "a/weights.bin").read_bytes() == DATA
    assert names_in(place) == ["a"]
    again = shell("mount", place)
    assert again.code == errors.AlreadyExists.exit_code and "umount" in again.err
    with open(place / "a/weights.bin", "rb") as held:
        refused = shell("umount", place)
        assert refused.code == errors.InvalidInput.exit_code and "--lazy" in refused.err
        shell.ok("umount", place, "--lazy")
        assert held.read() == DATA
    assert names_in(place) == []
    until("its processes are gone", lambda: not Path(f"/proc/{told['pid']}").exists())
    assert shell("umount", place).code == errors.NotFound.exit_code


def test_in_the_foreground_it_stays_until_it_is_told_to_end(shell: Shell, place: Path) -> None:
    process = shell.start("mount", place, "--foreground")
    until("it is served", lambda: device.device_of(place) is not None and names_in(place) == ["models", "secret"])
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert names_in(place) == [] and device.device_of(place) is None


def test_what_cannot_be_mounted_is_said(shell: Shell, place: Path) -> None:
    for arguments, error, said in (
        ((place, "--path", "/models/a/weights.bin"), errors.NotFound, "not a file"),
        ((place, "--path", "/nothing"), errors.NotFound, "/nothing"),
        ((place / "none",), errors.NotFound, "mkdir -p"),
        ((place, "--path", "relative"), errors.InvalidInput, "relative"),
        ((place, "--url", "http://127.0.0.1:1"), errors.InvalidInput, "own node"),
    ):
        outcome = shell("mount", *arguments)
        assert outcome.code == error.exit_code and said in outcome.err, outcome
    assert device.device_of(place) is None
