"""How long may a storage take that has no timeouts of its own? A mount whose server is gone holds its callers for ever.

Every call runs in a thread of the storage's own; who called waits for a bounded time and is told then that the storage is away. Threads
that hang stay so until the kernel or the driver lets them go; they are few, and no one else's.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="attached")

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
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._storage.close()

    def _in_time(self, name: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self.gate.asking():
            future = self._executor.submit(call, *args, **kwargs)
            try:
                return future.result(self._timeout_s)
            except TimeoutError as error:
                future.cancel()
                why = f"no answer within {self._timeout_s:g} s"
                raise TierUnavailable(why, operation="ask", subject=self._storage.where(name), tier=self.identity) from error
