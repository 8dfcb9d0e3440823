"""Who answers the mount's questions in earnest? This node's daemon: names and bytes over its descriptor socket, listings over HTTP.

A daemon that does not answer is insisted on for `PATIENCE_S`, which is longer than a restart takes; then the question fails, so that no
reader waits for ever. Descriptors outlive the daemon that gave them. What a new daemon does not know of (a copy that it did not hand out)
is opened again, in the same version, and read from the new descriptor.

A question may wait until bytes are there, and one connection carries one question: as many connections are kept as there are
readers that wait at once.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import stamina

from ckptstore.config import read_settings
from ckptstore.errors import Busy, DaemonUnavailable, NotFound, TierFull, WaitTimeout
from ckptstore.tree_messages import FileListing, TreeChanges, TreeInfo
from ckptstore.wire import LONG_POLL_S, Status, Usage
from ckptstore_client.api import Api
from ckptstore_client.descriptors import DescriptorConnection
from ckptstore_client.mount.source import Changes, Copy, Space

#: How long a question is repeated while no daemon answers, in seconds.
PATIENCE_S = 20.0
#: How long bytes may take to arrive, in seconds. The daemon gives a slow origin up before.
ARRIVAL_TIMEOUT_S = 120.0
#: For how long names of attached storage are believed, and all names while no daemon tells of changes.
BELIEVED_S = 1.0
LIST_ENTRIES = 1000

Answer = TypeVar("Answer")


class DaemonSource:
    def __init__(self, api: Api, descriptors: Path | None) -> None:
        """`api` stays the caller's. Without a socket for descriptors, over a network, everything is streamed."""
        self._api = api
        self._descriptors_path = descriptors
        self._name = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._idle: queue.LifoQueue[DescriptorConnection] = queue.LifoQueue()

    @classmethod
    def of_home(cls, home: Path) -> DaemonSource:
        settings = read_settings(home=home)
        return cls(Api.over_socket(str(settings.api_socket), timeout_s=PATIENCE_S), settings.fd_socket)

    # --- names --------------------------------------------------------------------------------------------------------------------

    def info(self, path: str) -> TreeInfo:
        """Over the descriptor socket, which answers in a tenth of the time that an HTTP request takes."""
        if self._descriptors_path is None:
            return _insist(lambda: self._api.call("GET", "tree/info", TreeInfo, path=path))
        return self._ask(lambda connection: connection.look(path))

    def list(self, path: str, after: str | None) -> FileListing:
        return _insist(lambda: self._api.call("GET", "tree/list", FileListing, path=path, after=after, limit=LIST_ENTRIES))

    def changes(self, seen: int) -> Changes:
        """Not insisted: who asks must know that nothing is told."""
        timeout_s = 0 if seen < 0 else LONG_POLL_S
        answer = self._api.call("GET", "tree/changes", TreeChanges, seen=seen, timeout_s=timeout_s, follower=self._name)
        return Changes(answer.seen, None if answer.paths is None else tuple(answer.paths))

    def space(self) -> Space:
        """What the tree holds is used; what the deepest tier that has a limit has left is free."""
        usage = _insist(lambda: self._api.call("GET", "usage", Usage, path="/"))
        tiers = _insist(lambda: self._api.call("GET", "status", Status)).tiers
        free_bytes = next((tier.free_bytes for tier in reversed(tiers) if tier.durable and tier.free_bytes is not None), 0)
        return Space(usage.size_bytes + free_bytes, free_bytes, usage.files)

    # --- bytes --------------------------------------------------------------------------------------------------------------------

    def open(self, path: str, version: str) -> Copy:
        def ask(connection: DescriptorConnection) -> Copy:
            file, fd = connection.open_file(path, version)
            return Copy(path, file.version, file.size_bytes, -1 if fd is None else fd, file.whole and fd is not None, file.copy_id)

        if self._descriptors_path is None:
            return Copy(path, version, self.info(path).size_bytes, -1, whole=False)
        return self._ask(ask)

    def need(self, copy: Copy, offset_bytes: int, size_bytes: int, *, exact: bool = False) -> Copy | None:
        needed = partial(
            DescriptorConnection.need,
            version=copy.version,
            copy_id=copy.copy_id,
            offset_bytes=offset_bytes,
            size_bytes=size_bytes,
            exact=exact,
            timeout_s=ARRIVAL_TIMEOUT_S,
        )
        try:
            self._ask(needed)
        except NotFound:
            another = self.open(copy.path, copy.version)
            if not another.whole and another.fd >= 0:
                return self.need(another, offset_bytes, size_bytes, exact=exact) or another
            return another
        except TierFull:
            return Copy(copy.path, copy.version, copy.size_bytes, -1, whole=False)
        return None

    def read(self, copy: Copy, offset_bytes: int, size_bytes: int) -> bytes:
        headers = {"range": f"bytes={offset_bytes}-{offset_bytes + size_bytes - 1}"}

        def stream() -> bytes:
            with self._api.stream("GET", "tree/content", headers=headers, path=copy.path, version=copy.version) as response:
                return response.read()

        return _insist(stream)

    def close(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def _ask(self, question: Callable[[DescriptorConnection], Answer]) -> Answer:
        def once() -> Answer:
            connection = self._connection()
            try:
                return question(connection)
            finally:
                if connection.is_open:
                    self._idle.put(connection)

        return _insist(once)

    def _connection(self) -> DescriptorConnection:
        """One that is idle and alive; those that are left from an earlier daemon show when they are used."""
        with contextlib.suppress(queue.Empty):
            while True:
                connection = self._idle.get_nowait()
                if connection.is_open:
                    return connection
        assert self._descriptors_path is not None
        return DescriptorConnection(self._descriptors_path, PATIENCE_S)


def _insist(question: Callable[[], Answer]) -> Answer:
    """Ask until somebody answers, for `PATIENCE_S`."""
    for attempt in stamina.retry_context(on=_is_absence, attempts=None, timeout=PATIENCE_S, wait_initial=0.05, wait_max=1.0):
        with attempt:
            return question()
    raise DaemonUnavailable("no daemon answers", operation="ask the daemon")


def _is_absence(error: Exception) -> bool:
    return isinstance(error, DaemonUnavailable | WaitTimeout | Busy)
