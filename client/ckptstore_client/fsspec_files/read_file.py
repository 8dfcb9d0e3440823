"""A file that was opened for reading: one version, read ahead for those who read bit by bit, straight into place for those who do not."""

from __future__ import annotations

from functools import partial
from typing import Any

from fsspec.spec import AbstractBufferedFile

from ckptstore_client.fsspec_files.faults import as_python_errors
from ckptstore_client.fsspec_files.new_bytes import filled_bytes
from ckptstore_client.tree import TreeFile
from ckptstore_tiers.checksums import BLOCK_BYTES


class ReadFile(AbstractBufferedFile):  # type: ignore[misc]
    """Not thread-safe, as file objects are not."""

    #: The unit that is verified: a smaller one would read the same bytes again and again.
    DEFAULT_BLOCK_SIZE = BLOCK_BYTES

    def __init__(self, fs: Any, path: str, opened: TreeFile, **options: Any) -> None:
        self._opened = opened
        super().__init__(fs, path, "rb", size=opened.info.size_bytes, **options)

    def _fetch_range(self, start: int, end: int) -> bytes:
        with as_python_errors(self.path):
            stop = min(end, self._opened.info.size_bytes)
            return filled_bytes(stop - start, partial(self._opened.read_into, start))

    def readinto(self, b: Any) -> int:
        """A large read goes past the cache, into the caller's memory."""
        into = memoryview(b).cast("B")
        if len(into) < BLOCK_BYTES:
            return int(super().readinto(b))
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        into = into[: max(0, self.size - self.loc)]
        with as_python_errors(self.path):
            self._opened.read_into(self.loc, into)
        self.loc += len(into)
        return len(into)

    def close(self) -> None:
        super().close()
        self._opened.close()
