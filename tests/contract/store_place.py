"""A daemon of two tiers, and the two ways to it: from its own node, and over the network. Fixtures of the suites that hold for both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ckptstore
from ckptstore_bench.ports import free_port
from ckptstore_client import Store
from tests.daemon_process import DaemonProcess, write_config

TOKEN = "a token of tests"
WAIT_S = 60.0


@dataclass
class Place:
    """A daemon with two tiers, and a way to it."""

    daemon: DaemonProcess
    url: str
    over_network: bool

    def connect(self, **options: Any) -> Store:
        if self.over_network:
            return ckptstore.connect(self.url, token=TOKEN, **options)
        return ckptstore.connect(home=self.daemon.home, start=False, **options)


def start(home: Path, port: int) -> DaemonProcess:
    tiers = [
        {"name": "nvme", "kind": "posix", "path": home / "nvme"},
        {"name": "pfs", "kind": "posix", "path": home / "pfs", "shared": True},
    ]
    write_config(home, tiers=tiers, listen=f"127.0.0.1:{port}", token=TOKEN, grace_s=0, attempt_timeout_s=60, memory={"limit": "256MiB"})
    return DaemonProcess(home)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DaemonProcess, str]]:
    port = free_port()
    with start(tmp_path_factory.mktemp("store"), port) as process:
        yield process, f"http://127.0.0.1:{port}"


@pytest.fixture(params=["local", "network"])
def place(daemon: tuple[DaemonProcess, str], request: pytest.FixtureRequest) -> Place:
    return Place(daemon[0], daemon[1], request.param == "network")


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with place.connect() as connected:
        yield connected


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> str:
    """A folder of the namespace of this test's own."""
    return f"/t/{abs(hash(request.node.name)):x}"
