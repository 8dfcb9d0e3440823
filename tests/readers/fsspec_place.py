"""A daemon whose one tier is memory of the machine, so that thousands of small files cost no disk; and its file system, by both ways."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ckptstore_bench.ports import free_port
from ckptstore_client.fsspec_files.filesystem import CkptFileSystem
from tests.contract.store_place import TOKEN
from tests.daemon_process import DaemonProcess, write_config


@dataclass
class FilesPlace:
    daemon: DaemonProcess
    port: int

    def options(self, *, over_network: bool = False) -> dict[str, Any]:
        """What names this store, as `storage_options` would."""
        if over_network:
            return {"host": "127.0.0.1", "port": self.port, "token": TOKEN, "start": False}
        return {"home": str(self.daemon.home), "start": False}

    def filesystem(self, *, over_network: bool = False) -> CkptFileSystem:
        return CkptFileSystem(**self.options(over_network=over_network), skip_instance_cache=True)


@pytest.fixture(scope="module")
def files_place() -> Iterator[FilesPlace]:
    home = Path(tempfile.mkdtemp(prefix="ckptstore-files-", dir="/dev/shm"))
    port = free_port()
    tiers = [{"name": "nvme", "kind": "posix", "path": home / "nvme"}]
    write_config(home, tiers=tiers, listen=f"127.0.0.1:{port}", token=TOKEN, memory={"limit": "64MiB"})
    try:
        with DaemonProcess(home) as process:
            yield FilesPlace(process, port)
    finally:
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def fs(files_place: FilesPlace) -> Iterator[CkptFileSystem]:
    """From the daemon's own node."""
    filesystem = files_place.filesystem()
    yield filesystem
    filesystem.store.close()
