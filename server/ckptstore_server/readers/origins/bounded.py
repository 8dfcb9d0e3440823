"""How long may a storage take that has no timeouts of its own? A mount whose server is gone holds its callers for ever.

Every call runs in a thread of its own; who called waits for a bounded time and is told then that the storage is away. Threads that hang
stay so until the kernel or the driver lets them go; they are few, and do not keep the daemon from ending. Starting one costs some 50 µs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

from ckptstore.errors import TierUnavailable
from ckptstore_server.readers.origin import FileVersion
from ckptstore_server.readers.origins.gate import Gate
from ckptstore_server.readers.origins.storage import Found, FoundPage, Unbounded

P = ParamSpec("P")
T = TypeVar("T")

CALL_TIMEOUT_S = 30.0
THREADS = 8


class BoundedStorage:
    """A `Storage` that answers in time, over one that may not."""

    def __init__(self, storage: Unbounded, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self.identity = storage.identity
        self.gate = Gate()
        self._storage = storage
        self._timeout_s = timeout_s
        self._free = threading.BoundedSemaphore(THREADS)

    def look(self, name: str) -> Found:
        return self._in_time(name, self._storage.look, name)

    def page(self, folder: str, after: str, limit: int) -> FoundPage:
        return self._in_time(folder, self._storage.page, folder, after, limit)

    def read_into(self, file: FileVersion, offset_bytes: int, into: memoryview) -> None:
        # Into memory of its own: a thread that comes back late must not write into what is somebody else's by then.
        own = bytearray(len(into))
        self._in_time(file.name, self._storage.read_into, file, offset_bytes, memoryview(own))
        into.cast("B")[:] = own

    def where(self, name: str) -> str:
        return self._storage.where(name)

    def close(self) -> None:
        self._storage.close()

    def _in_time(self, name: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self.gate.asking():
            deadline_s = time.monotonic() + self._timeout_s
            answer: Future[T] = Future()

            def ask() -> None:
                try:
                    answer.set_result(call(*args, **kwargs))
                except BaseException as error:  # noqa: BLE001 - the top of a thread: raised again where it was asked
                    answer.set_exception(error)
                finally:
                    self._free.release()

            try:
                if not self._free.acquire(timeout=self._timeout_s):
                    raise TimeoutError
                threading.Thread(target=ask, name=f"attached {self.identity}", daemon=True).start()
                return answer.result(max(0.0, deadline_s - time.monotonic()))
            except TimeoutError as error:
                why = f"no answer within {self._timeout_s:g} s"
                raise TierUnavailable(why, operation="ask", subject=self._storage.where(name), tier=self.identity) from error
