"""How does a client work with a daemon on another node? The same API over TCP, with a bearer token; bytes are streamed both ways.

`save` returns when the state is copied into a buffer of this process, which the saver's threads send. So a remote save is safe only
when `wait("snapshot")` has returned: until then this process must live. Two buffers, as on the daemon's side: a third save waits for
the first to be sent.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

from ckptstore.errors import CkptStoreError, InvalidInput, WaitTimeout
from ckptstore.wire import AttemptOpened, AttemptStatus, FileStored, OpenAttempt, SessionOpened
from ckptstore_client.api import Api
from ckptstore_client.replicas import ContentStream, Replica
from ckptstore_client.transport import Target
from ckptstore_client.versions import greeted
from ckptstore_tiers.private_memory import private_memory

_CHUNK_BYTES = 1024 * 1024
_BUFFERS = 2


class RemoteTransport:
    def __init__(self, url: str, token: str | None, *, timeout_s: float) -> None:
        self.api = Api.over_network(url, token, timeout_s=timeout_s)
        try:
            greeted(self.api)
            self.api.use_session(self.api.call("POST", "sessions", SessionOpened).session)
        except CkptStoreError:
            self.api.close()
            raise
        self.alive = True
        self.descriptors_path: Path | None = None
        self._free = threading.BoundedSemaphore(_BUFFERS)
        self._buffers: list[memoryview] = []
        self._lock = threading.Lock()

    # --- saving ------------------------------------------------------------------------------------------------------------------

    hands_over_at_once = False

    def acquire(self, size_bytes: int, opens: OpenAttempt | None = None) -> Target | None:
        """None: a save has a slot of the daemon's before it takes a buffer here, or saves of several threads would wait for each other."""
        return None

    def opened(self, target: Target) -> AttemptOpened:
        raise WaitTimeout("a target here comes with its attempt", operation="save")

    def target(self, opened: AttemptOpened, size_bytes: int) -> Target:
        self._free.acquire()
        return self._buffer(size_bytes)

    def hand_over(self, opened: AttemptOpened, rank: int, target: Target, size_bytes: int) -> None:
        route = f"attempts/{opened.attempt_id}/ranks/{rank}/body"
        headers = {"content-length": str(size_bytes), "content-type": "application/octet-stream"}
        self.api.call("PUT", route, AttemptStatus, content=_chunks(target.view[:size_bytes]), headers=headers)
        self.give_back(target)

    def _buffer(self, size_bytes: int) -> Target:
        with self._lock:
            for position, buffer in enumerate(self._buffers):
                if len(buffer) >= size_bytes:
                    return Target(self._buffers.pop(position))
            self._buffers.clear()  # they have become too small
        try:
            return Target(private_memory(size_bytes))
        except BaseException:
            self._free.release()
            raise

    def give_back(self, target: Target) -> None:
        with self._lock:
            if len(self._buffers) < _BUFFERS:
                self._buffers.append(target.view)
        self._free.release()

    def store_file(self, attempt_id: str, name: str, fd: int, size_bytes: int) -> None:
        headers = {"content-length": str(size_bytes), "content-type": "application/octet-stream"}
        content = _file_chunks(fd, size_bytes, name)
        self.api.call("PUT", f"attempts/{attempt_id}/files", FileStored, content=content, headers=headers, name=name)

    # --- reading -----------------------------------------------------------------------------------------------------------------

    def openable(self, object_id: str, *, recall: bool = True) -> list[str]:
        return []

    def open(self, object_id: str, tier: str) -> Replica:
        raise CkptStoreError("replicas are not opened over the network", operation="open", subject=object_id, tier=tier)

    def part(self, object_id: str) -> Replica:
        return self.stream(object_id, recall=False)

    def stream(self, object_id: str, *, recall: bool = True) -> Replica:
        return ContentStream(self.api, object_id, recall=recall)

    def report_damage(self, object_id: str, tier: str, block: int) -> None:
        """The daemon verifies what it streams, and repairs, by itself."""

    # --- ending ------------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self.alive = False
        self.api.close()

    def abandon(self) -> None:
        self.alive = False


def _chunks(data: memoryview) -> Iterator[bytes]:
    for start in range(0, len(data), _CHUNK_BYTES):
        yield bytes(data[start : start + _CHUNK_BYTES])


def _file_chunks(fd: int, size_bytes: int, name: str) -> Iterator[bytes]:
    offset = 0
    while offset < size_bytes:
        chunk = os.pread(fd, min(_CHUNK_BYTES, size_bytes - offset), offset)
        if not chunk:
            raise InvalidInput(f"the file became shorter while it was sent ({offset} of {size_bytes} bytes)", operation="put", subject=name)
        yield chunk
        offset += len(chunk)
