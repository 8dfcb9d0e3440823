"""How does a client work with a daemon on another node? The same API over TCP, with a bearer token; bytes are streamed both ways.

`save` returns when the state is copied into a buffer of this process; a thread sends it. So a remote save is safe only when
`wait("snapshot")` has returned: until then this process must live. An upload that fails aborts the attempt, and every `wait` says
why. Two buffers, as on the daemon's side: a third save waits for the first to be sent.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from ckptstore.errors import CkptStoreError, InvalidInput
from ckptstore.wire import Abort, AttemptOpened, AttemptStatus, FileStored, Hello, SessionOpened
from ckptstore_client.api import Api
from ckptstore_client.reading import ContentStream, Replica, anonymous_memory
from ckptstore_client.staging import StagedState, Staging

_CHUNK_BYTES = 1024 * 1024
_BUFFERS = 2


class RemoteTransport:
    def __init__(self, url: str, token: str | None, *, timeout_s: float) -> None:
        self.api = Api.over_network(url, token, timeout_s=timeout_s)
        try:
            self.api.call("GET", "hello", Hello)
            self.api.use_session(self.api.call("POST", "sessions", SessionOpened).session)
        except CkptStoreError:
            self.api.close()
            raise
        self.alive = True
        self._uploads = ThreadPoolExecutor(_BUFFERS, thread_name_prefix="ckptstore-upload")
        self._free = threading.BoundedSemaphore(_BUFFERS)
        self._buffers: list[memoryview] = []
        self._lock = threading.Lock()

    # --- saving ------------------------------------------------------------------------------------------------------------------

    def hand_over(self, opened: AttemptOpened, rank: int, staged: StagedState, staging: Staging) -> None:
        self._free.acquire()
        buffer = self._buffer(staged.size_bytes)
        try:
            staging.copy(staged, buffer)
            future = self._uploads.submit(self._upload, opened.attempt_id, rank, buffer[: staged.size_bytes])
        except BaseException:
            self._give_back(buffer)
            raise
        future.add_done_callback(lambda done: self._uploaded(done, buffer))

    def _upload(self, attempt_id: str, rank: int, data: memoryview) -> None:
        """The top of an upload: what goes wrong is said through the attempt."""
        try:
            route = f"attempts/{attempt_id}/ranks/{rank}/body"
            headers = {"content-length": str(len(data)), "content-type": "application/octet-stream"}
            self.api.call("PUT", route, AttemptStatus, content=_chunks(data), headers=headers)
        except CkptStoreError as error:
            with contextlib.suppress(CkptStoreError):
                reason = f"rank {rank} could not be sent: {error}"[:1000]
                self.api.call("POST", f"attempts/{attempt_id}/abort", AttemptStatus, Abort(reason=reason))
            raise

    def _uploaded(self, done: Future[None], buffer: memoryview) -> None:
        self._give_back(buffer)

    def _buffer(self, size_bytes: int) -> memoryview:
        with self._lock:
            for position, buffer in enumerate(self._buffers):
                if len(buffer) >= size_bytes:
                    return self._buffers.pop(position)
            self._buffers.clear()  # they have become too small
        return anonymous_memory(size_bytes)

    def _give_back(self, buffer: memoryview) -> None:
        with self._lock:
            if len(self._buffers) < _BUFFERS:
                self._buffers.append(buffer)
        self._free.release()

    def store_file(self, attempt_id: str, name: str, fd: int, size_bytes: int) -> None:
        headers = {"content-length": str(size_bytes), "content-type": "application/octet-stream"}
        content = _file_chunks(fd, size_bytes, name)
        self.api.call("PUT", f"attempts/{attempt_id}/files", FileStored, content=content, headers=headers, name=name)

    # --- reading -----------------------------------------------------------------------------------------------------------------

    def openable(self, object_id: str) -> list[str]:
        return []

    def open(self, object_id: str, tier: str) -> Replica:
        raise CkptStoreError("replicas are not opened over the network", operation="open", subject=object_id, tier=tier)

    def stream(self, object_id: str) -> Replica:
        return ContentStream(self.api, object_id)

    def report_damage(self, object_id: str, tier: str, block: int) -> None:
        """The daemon verifies what it streams, and repairs, by itself."""

    # --- ending ------------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Waits for uploads that are under way."""
        self.alive = False
        self._uploads.shutdown(wait=True)
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
