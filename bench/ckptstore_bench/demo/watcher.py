"""Where is each save by now? A thread that asks the daemon ten times a second, also while trainers are dead and daemons come back.

A daemon that does not answer is normal here: it was killed, and is asked again.
"""

from __future__ import annotations

import threading
from types import TracebackType

from ckptstore.config import read_settings
from ckptstore.errors import DaemonUnavailable, WaitTimeout
from ckptstore.wire import AttemptStatus
from ckptstore_bench.demo.cluster import Cluster
from ckptstore_bench.demo.record import Record
from ckptstore_client.api import Api

INTERVAL_S = 0.1


class Watcher:
    def __init__(self, cluster: Cluster, record: Record) -> None:
        self._cluster = cluster
        self._record = record
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher")

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """Ask once for each save that is under way. DaemonUnavailable, WaitTimeout."""
        api = Api.over_socket(str(read_settings(home=self._cluster.home).api_socket), timeout_s=10.0)
        try:
            for save in self._record.unfinished():
                status = api.call("GET", f"attempts/{save.attempt_id}", AttemptStatus)
                self._record.reach(save, status.timings_s, status.durability)
        finally:
            api.close()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            try:
                self.look()
            except (DaemonUnavailable, WaitTimeout):
                continue
