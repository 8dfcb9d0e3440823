"""How does a client work with the daemon of its own node? Control over a unix socket, bytes through memory and descriptors that
the daemon lends.

The session is the descriptor connection: its end is this process's end for the daemon. Files that are put go over connections of
their own, several at once, since an ingest holds its connection until the file is durable.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import time
from pathlib import Path

from ckptstore.config import read_settings
from ckptstore.errors import Busy, CkptStoreError, DaemonUnavailable, NotFound, VersionMismatch, WaitTimeout
from ckptstore.wire import AttemptOpened, Damage, HandOver, Located, OpenAttempt, SegmentGrant
from ckptstore_client.api import Api
from ckptstore_client.arriving import ArrivingFile
from ckptstore_client.descriptors import DescriptorConnection
from ckptstore_client.launch import start_daemon
from ckptstore_client.mount.daemon_source import DaemonSource
from ckptstore_client.part_file import PartFile
from ckptstore_client.replicas import MEMORY, ContentStream, MappedReplica, OpenFile, Replica, SegmentMappings
from ckptstore_client.step_times import steps_since_last_asked
from ckptstore_client.transport import Target
from ckptstore_client.versions import greeted, leaves

#: A recall of a large object from a slow tier may take this long before a reader streams it instead.
RECALL_TIMEOUT_S = 600.0
#: What an attempt may say of itself over the descriptor socket, whose lines are bounded; longer metadata goes by a request.
LINE_BYTES = 1 << 18


class LocalTransport:
    def __init__(self, home: Path | None, *, start: bool, timeout_s: float) -> None:
        settings = read_settings(home=home)
        self.descriptors_path = settings.fd_socket
        self._timeout_s = timeout_s
        self.api = Api.over_socket(str(settings.api_socket), timeout_s=timeout_s)
        try:
            self._connection = self._connect(settings.home, start)
        except CkptStoreError:
            self.api.close()
            raise
        self.api.use_session(self._connection.session)
        self._ingesting: queue.SimpleQueue[DescriptorConnection] = queue.SimpleQueue()
        self._copies = DaemonSource(self.api, self.descriptors_path)
        self._mappings = SegmentMappings()

    def _connect(self, home: Path, start: bool) -> DescriptorConnection:
        try:
            return DescriptorConnection(self.descriptors_path, self._timeout_s)
        except DaemonUnavailable:
            if not start:
                raise
        except VersionMismatch:
            if not start:
                greeted(self.api)  # its error names both versions
                raise
        start_daemon(home, self._answers, timeout_s=self._timeout_s)
        return DescriptorConnection(self.descriptors_path, self._timeout_s)

    def _answers(self) -> bool:
        """Whether both sockets are served, by a daemon of this version. VersionMismatch if it is of another one, and stays."""
        try:
            greeted(self.api)
            DescriptorConnection(self.descriptors_path, self._timeout_s).close()
        except (DaemonUnavailable, WaitTimeout):
            return False
        except VersionMismatch:
            if not leaves(self.api):
                raise
            return False
        return True

    @property
    def alive(self) -> bool:
        return self._connection.is_open

    # --- saving ------------------------------------------------------------------------------------------------------------------

    hands_over_at_once = True

    def acquire(self, size_bytes: int, opens: OpenAttempt | None = None) -> Target | None:
        if opens is not None and opens.metadata and len(opens.model_dump_json()) > LINE_BYTES:
            opens = None
        try:
            grant = self._connection.acquire(size_bytes, opens)
        except Busy:
            return None
        return dataclasses.replace(self._mapped(grant, size_bytes), opening=opens is not None)

    def opened(self, target: Target) -> AttemptOpened:
        assert target.grant is not None
        return self._connection.opened(target.grant)

    def target(self, opened: AttemptOpened, size_bytes: int) -> Target:
        if opened.segment is None:
            raise CkptStoreError("the daemon granted no segment", operation="save", subject=opened.attempt_id)
        return self._mapped(opened.segment, size_bytes)

    def _mapped(self, grant: SegmentGrant, size_bytes: int) -> Target:
        try:
            return Target(self._connection.segment(grant.segment_id, populate_bytes=size_bytes).view, grant)
        except CkptStoreError as error:
            self._release(grant, f"{error!s:.500}")
            raise

    def hand_over(self, opened: AttemptOpened, rank: int, target: Target, size_bytes: int) -> None:
        assert target.grant is not None
        message = HandOver(
            segment_id=target.grant.segment_id,
            generation=target.grant.generation,
            size_bytes=size_bytes,
            steps_ended_s=steps_since_last_asked(),
        )
        self._connection.hand_over(opened.attempt_id, rank, message)

    def give_back(self, target: Target) -> None:
        assert target.grant is not None
        self._release(target.grant)

    def _release(self, grant: SegmentGrant, why: str = "") -> None:
        with contextlib.suppress(CkptStoreError):  # a session that is lost has lost its slots with it
            self._connection.release(grant, why)

    def store_file(self, attempt_id: str, name: str, fd: int, size_bytes: int) -> None:
        try:
            connection = self._ingesting.get_nowait()
        except queue.Empty:
            connection = DescriptorConnection(self.descriptors_path, self._timeout_s)
        connection.ingest(attempt_id, name, fd, size_bytes)
        self._ingesting.put(connection)  # one that failed is not used again

    # --- reading -----------------------------------------------------------------------------------------------------------------

    def openable(self, object_id: str, *, recall: bool = True) -> list[str]:
        """Waits while the daemon recalls the object; after RECALL_TIMEOUT_S there is only the stream."""
        deadline = time.monotonic() + RECALL_TIMEOUT_S
        while True:
            try:
                located = self.api.call("GET", f"objects/{object_id}/replicas", Located, recall=recall)
            except Busy:  # the daemon held the request as long as one may be held, and asks to be asked again
                if time.monotonic() > deadline:
                    return []
                continue
            return [replica.tier for replica in located.replicas if replica.openable]

    def open(self, object_id: str, tier: str) -> Replica:
        opened = self._connection.open(object_id, tier)
        if opened.ready.arriving:
            try:
                pipe = self._connection.follow(object_id)
            except NotFound:  # it has arrived meanwhile
                os.close(opened.fd)
                opened = self._connection.open(object_id, tier)
            else:
                return ArrivingFile(opened.fd, pipe, tier, size_bytes=opened.ready.size_bytes)
        if tier != MEMORY:
            return OpenFile(opened.fd, tier, size_bytes=opened.ready.size_bytes)
        try:
            return MappedReplica(self._mappings.mapping(opened.fd), size_bytes=opened.ready.size_bytes)
        finally:
            os.close(opened.fd)

    def part(self, object_id: str) -> Replica:
        copy = self._copies.open("", object_id)
        return self.stream(object_id, recall=False) if copy.fd < 0 else PartFile(self._copies, copy)

    def stream(self, object_id: str, *, recall: bool = True) -> Replica:
        return ContentStream(self.api, object_id, recall=recall)

    def report_damage(self, object_id: str, tier: str, block: int) -> None:
        self.api.call("POST", f"objects/{object_id}/damage", Located, Damage(tier=tier, block=block))

    # --- ending ------------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        while True:
            with contextlib.suppress(queue.Empty):
                self._ingesting.get_nowait().close()
                continue
            break
        self._copies.close()
        self._connection.close()
        self.api.close()

    def abandon(self) -> None:
        """`DescriptorConnection` lets go of its sockets at the fork by itself; the API's are only not used again."""
