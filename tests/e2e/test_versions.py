"""A client and a daemon of different versions refuse each other when they meet, and say what to do; an old daemon that is idle goes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import httpx
import numpy as np
import pytest

import ckptstore
from ckptstore.errors import VersionMismatch
from ckptstore.wire import API_VERSION
from ckptstore_bench.ports import free_port
from ckptstore_client.descriptors import DescriptorConnection
from tests.daemon_process import DaemonProcess, api_of, write_config
from tests.e2e.shell import Shell
from tests.until import until

TOKEN = "a-token-of-this-test"
#: `ckptstore serve` as a client starts it, of another version.
AUTO_STARTED = """
import sys
from ckptstore import wire
wire.API_VERSION = int(sys.argv.pop(1))
from ckptstore_server.__main__ import app
app()
"""


@dataclass(frozen=True)
class OfVersion:
    api: int

    def __call__(self, stack: ExitStack) -> None:
        for module in ("fd_server", "status"):
            stack.enter_context(mock.patch(f"ckptstore_server.{module}.API_VERSION", self.api))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    write_config(home, tiers=[{"name": "nvme", "kind": "posix", "path": tmp_path / "nvme"}], memory={"limit": "64MiB", "huge_pages": False})
    return home


def refused(home: Path | None, *, url: str | None = None) -> VersionMismatch:
    with pytest.raises(VersionMismatch) as found:
        ckptstore.connect(url, home=home, token=TOKEN)
    return found.value


@pytest.mark.parametrize("other", [API_VERSION - 1, API_VERSION + 1])
def test_another_version_is_refused_at_connect_by_name_with_what_to_do(home: Path, other: int) -> None:
    shell = Shell(home)
    with DaemonProcess(home, rigging=OfVersion(other)) as daemon:
        error = refused(home)
        assert f"pid {daemon.pid}) speaks version {other}" in error.why
        assert f"this client (ckptstore {ckptstore.__version__}) {API_VERSION}" in error.why
        assert "ckptstore stop" in (error.hint or "")
        assert ("install ckptstore" in (error.hint or "")) == (other > API_VERSION)
        told = shell("status")
        assert told.code == VersionMismatch.exit_code
        assert "ckptstore stop" in told.err
        assert daemon.alive, "nobody asked for its end"
        assert shell("stop").code == 0, "what the hint says works across versions"
        assert daemon.wait_exit() == 0


def test_another_version_is_refused_over_the_network(home: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    settings = {"CKPTSTORE_LISTEN": address, "CKPTSTORE_TOKEN": TOKEN}
    with DaemonProcess(home, rigging=OfVersion(API_VERSION + 1), environment=settings):
        assert f"speaks version {API_VERSION + 1}" in refused(None, url=f"http://{address}").why


def test_a_client_whose_daemon_comes_back_as_another_version_is_told_at_its_next_call(home: Path) -> None:
    with DaemonProcess(home) as daemon, ckptstore.connect(home=home, start=False) as store:
        store.save("/run/1", {"x": np.zeros(10)}).wait("nvme", timeout_s=60)
        daemon.kill()
        with DaemonProcess(home, rigging=OfVersion(API_VERSION + 1)), pytest.raises(VersionMismatch):
            store.save("/run/2", {"x": np.zeros(10)})


@pytest.mark.parametrize("api", [1, API_VERSION + 1])
def test_a_client_of_another_version_reads_why_it_is_refused(home: Path, api: int) -> None:
    """As it greets, and whatever else it says: all versions have found an error's text in the same place."""
    with DaemonProcess(home), socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(ckptstore_settings(home)))
        raw.sendall(json.dumps({"op": "hello", "api": api, "pid": 1, "later": "thing"}).encode() + b"\n")
        answer = json.loads(raw.makefile().readline())
    assert f"the client speaks version {api}, this daemon {API_VERSION}" in answer["error"]["why"]
    assert "ckptstore stop" in answer["error"]["hint"]


def ckptstore_settings(home: Path) -> Path:
    from ckptstore.config import read_settings

    return read_settings(home / "config.toml", home=home).fd_socket


def test_what_daemons_of_version_1_said_is_understood(tmp_path: Path) -> None:
    said = {"error": {"error": "invalid_input", "why": "the client speaks version 2, this daemon 1", "operation": "connect"}}

    def answer_one(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.makefile().readline()
            connection.sendall(json.dumps(said).encode() + b"\n")

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "fd.sock"))
        listening.listen()
        thread = threading.Thread(target=answer_one, args=(listening,))
        thread.start()
        with pytest.raises(VersionMismatch, match=r"this daemon 1.*ckptstore stop"):
            DescriptorConnection(tmp_path / "fd.sock")
        thread.join()


# --- one that was started by a client ------------------------------------------------------------------------------------------------


@pytest.fixture
def old(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon that a client of the version before has started. Whichever runs in the end is ended."""
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-c", AUTO_STARTED, str(API_VERSION - 1), "--home", str(home), "--auto-started"]
    with open(home / "daemon.log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        with api_of(home) as api:
            until("it answers", lambda: answers(api))
        yield process
    finally:
        process.kill()
        process.wait()
        with suppress(FileNotFoundError, ValueError, ProcessLookupError):
            pid = int((home / "daemon.lock").read_text("ascii"))
            if str(home) in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)


def answers(api: httpx.Client) -> bool:
    try:
        return api.get("/v1/hello").status_code == 200
    except httpx.TransportError:
        return False


def test_an_older_one_that_was_auto_started_and_is_idle_is_replaced_once_by_all_who_come(home: Path, old: subprocess.Popen[bytes]) -> None:
    with ThreadPoolExecutor(4) as threads:
        stores = list(threads.map(lambda _: ckptstore.connect(home=home), range(4)))
    assert old.wait(60) == 0, "it ended in order"
    (successor,) = {store.hello().pid for store in stores}
    assert successor != old.pid
    stores[0].save("/run/1", {"x": np.arange(10)}).wait("nvme", timeout_s=60)
    for store in stores:
        store.close()


def test_an_older_one_that_somebody_uses_is_left_alone_and_named(home: Path, old: subprocess.Popen[bytes]) -> None:
    with socket.socket(socket.AF_UNIX) as client:  # a client of its own version
        client.connect(str(ckptstore_settings(home)))
        client.sendall(json.dumps({"op": "hello", "api": API_VERSION - 1, "pid": 1}).encode() + b"\n")
        assert "session" in json.loads(client.makefile().readline())
        assert f"pid {old.pid}" in refused(home).why
        assert old.poll() is None
