"""The folder of a run of figures: a home with one NVMe tier, and the daemon that the first `connect` starts there.

The daemon is not our child; leaving the `with` block tells it to stop and waits until it is gone.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
from pathlib import Path
from types import TracebackType

import ckptstore
from ckptstore.config import read_settings
from ckptstore.errors import CkptStoreError, DaemonUnavailable
from ckptstore.wire import FilePage, Located, PublicationInfo
from ckptstore_client.api import Api

STOP_TIMEOUT_S = 60.0
#: `grace_s = 0`: what is removed between rounds leaves the disk at once.
CONFIGURATION = """\
grace_s = 0

[memory]
limit = "{limit_bytes}"

[[tiers]]
name = "nvme"
kind = "posix"
path = "{folder}/nvme"
"""


class Workspace:
    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.tier = folder / "nvme"
        self.home.mkdir(mode=0o700, parents=True)
        (self.home / "config.toml").write_text(CONFIGURATION.format(folder=folder, limit_bytes=limit_bytes), "utf-8")
        self._socket = str(read_settings(home=self.home).api_socket)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop_daemon()
        shutil.rmtree(self.folder, ignore_errors=True)

    def connect(self) -> ckptstore.Store:
        return ckptstore.connect(home=self.home)

    def stop_daemon(self) -> None:
        """Stop it, so that its memory replicas are gone; nothing happens if none runs."""
        try:
            with ckptstore.connect(home=self.home, start=False, timeout_s=5.0) as store:
                handle = os.pidfd_open(store.hello().pid)
        except DaemonUnavailable:
            return
        try:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            if not select.select([handle], [], [], STOP_TIMEOUT_S)[0]:
                raise CkptStoreError(f"the daemon did not end within {STOP_TIMEOUT_S:g} s", operation="bench")
        finally:
            os.close(handle)

    def nearest_replica(self, path: str) -> tuple[str, str]:
        """(tier, object id) of the replica that a load of `path` reads."""
        api = Api.over_socket(self._socket, timeout_s=10.0)
        try:
            publication = api.call("GET", "publications", PublicationInfo, path=path)
            files = api.call("GET", f"publications/{publication.publication_id}/files", FilePage, rank=0).files
            object_id = max(files, key=lambda file: file.size_bytes).object_id
            return api.call("GET", f"objects/{object_id}/replicas", Located).replicas[0].tier, object_id
        finally:
            api.close()

    def expect_nearest(self, path: str, tier: str) -> list[Path]:
        """The files of the replica that a load of `path` reads. An error if it is not in `tier`: something else would be measured."""
        found, object_id = self.nearest_replica(path)
        if found != tier:
            raise CkptStoreError(f"the nearest replica is in {found}, and {tier} was to be measured", operation="bench", subject=path)
        return [file for file in self.tier.rglob("*") if file.is_file() and object_id in file.name]
