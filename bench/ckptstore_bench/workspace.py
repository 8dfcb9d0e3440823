"""The store of a measurement: the scratch places, and the daemon that the first `connect` starts there.

The daemon is not our child; leaving the `with` block tells it to stop, waits until it is gone, and removes what was written.
"""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from types import TracebackType

import ckptstore
from ckptstore.errors import CkptStoreError, DaemonUnavailable
from ckptstore.wire import FilePage, Located, PublicationInfo
from ckptstore_bench.interruption import uninterrupted
from ckptstore_bench.scratch import Network, Scratch
from ckptstore_client.api import Api

STOP_TIMEOUT_S = 60.0


class Workspace:
    def __init__(self, scratch: Scratch, *, memory_limit_bytes: int | None, network: Network | None = None) -> None:
        """Owns `scratch` from here: it is entered and left with this block. With `network` its daemon serves the network API too."""
        self.scratch = scratch
        self.home = scratch.home
        self._memory_limit_bytes = memory_limit_bytes
        self._network = network
        self._socket = ""

    @property
    def folder(self) -> Path:
        """Scratch space on the device of the first posix tier."""
        return self.scratch.beside()[1]

    def __enter__(self) -> Workspace:
        self.scratch.__enter__()
        settings = self.scratch.write_configuration(memory_limit_bytes=self._memory_limit_bytes, network=self._network)
        self._socket = str(settings.api_socket)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with uninterrupted():
            try:
                self.stop_daemon()
            finally:
                self.scratch.__exit__(kind, error, trace)

    def connect(self) -> ckptstore.Store:
        return ckptstore.connect(home=self.home)

    def daemon_pid(self) -> int | None:
        """None if none runs."""
        try:
            with ckptstore.connect(home=self.home, start=False, timeout_s=5.0) as store:
                return store.hello().pid
        except DaemonUnavailable:
            return None

    def stop_daemon(self) -> None:
        """Stop it, so that its memory replicas are gone; nothing happens if none runs."""
        pid = self.daemon_pid()
        if pid is None:
            return
        handle = os.pidfd_open(pid)
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
