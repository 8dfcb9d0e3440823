"""A daemon with one tier, the clients of up to eight ranks, and a folder of a test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemon_process import DaemonProcess, write_config
from tests.sharding.simulated import Ranks


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    home = tmp_path_factory.mktemp("sharding")
    write_config(
        home,
        tiers=[{"name": "nvme", "kind": "posix", "path": home / "nvme"}],
        grace_s=0,
        attempt_timeout_s=60,
        memory={"limit": "512MiB"},
    )
    with DaemonProcess(home) as process:
        yield process


@pytest.fixture(scope="module")
def ranks(daemon: DaemonProcess) -> Iterator[Ranks]:
    with Ranks(daemon.home) as clients:
        yield clients


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> str:
    return f"/t/{abs(hash(request.node.nodeid)):x}"
