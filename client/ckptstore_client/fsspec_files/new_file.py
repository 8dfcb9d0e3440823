"""A file that is being written. It is in the store when it is closed, whole, and not before.

What is written goes into an unnamed temporary file (in $TMPDIR), which is put when the file is closed; so it may be written in any order.
A file that is left by an exception, or never closed, is not stored; nor is one whose program dies.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

#: Puts a local file; the second argument says whether it may replace what is there.
Put = Callable[[Path, bool], None]


class NewFile(io.RawIOBase):
    """With `autocommit=False` (an fsspec transaction), closing only ends the writing; `commit` or `discard` follows."""

    def __init__(self, path: str, mode: str, put: Put, *, autocommit: bool = True) -> None:
        super().__init__()
        self.path = path
        self.mode = mode
        self._put = put
        self._autocommit = autocommit
        self._temporary: IO[bytes] | None = tempfile.TemporaryFile(prefix="ckptstore-")  # noqa: SIM115 - closed by commit or discard

    @property
    def _file(self) -> IO[bytes]:
        if self.closed or self._temporary is None:
            raise ValueError("I/O operation on closed file.")
        return self._temporary

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        return self._file.truncate(size)

    def flush(self) -> None:
        """What is written is seen when the file is closed."""

    def commit(self) -> None:
        """Make it visible."""
        if self._temporary is None:
            return
        try:
            self._temporary.flush()
            self._put(Path(f"/proc/self/fd/{self._temporary.fileno()}"), "x" not in self.mode)
        finally:
            self.discard()

    def discard(self) -> None:
        """Forget what was written."""
        temporary, self._temporary = self._temporary, None
        if temporary is not None:
            temporary.close()

    def close(self) -> None:
        if self.closed:
            return
        try:
            if self._autocommit:
                self.commit()
        finally:
            super().close()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def __del__(self) -> None:
        """Nobody closed it: half a file must not become visible."""
        self.discard()
