"""What must the successor of a serving process know? Every change of the tables, written down before the kernel hears of it.

A line of JSON for each change, in a memory file that the holder keeps open: it survives the serving process, and goes with the mount. A
change is appended before its request is answered. So what the kernel knows stands in the journal, and what stands there and was not
answered is asked again by the kernel, with the same `unique`: lines carry it, and the successor does not count twice.

When the journal has grown, what is still true is written to a second memory file, whose last line says that it is complete; only then is
the first emptied. Killed at any point, one of the two is whole. A line that was cut off had not been answered.

Call everything under the tables' lock. Change the tables first and append then: a journal that is written anew takes their present state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import orjson

Line = Sequence[Any]
#: A journal is rewritten when it has grown by this factor; below this size it is not worth it.
GROWTH, SMALL_BYTES = 4, 4 << 20
_COMPLETE = "complete"


class Journal:
    """Over two memory files, which stay the caller's."""

    def __init__(self, files: tuple[int, int]) -> None:
        self._files = files
        self._epoch, self._current, self._size = self._newest()
        self._rewritten_bytes = self._size
        self.state: Callable[[], Iterable[Line]] = lambda: ()  # the lines that say what is true now

    @staticmethod
    def new_files() -> tuple[int, int]:
        """Inheritable, so that the serving process gets them."""
        return os.memfd_create("ckptstore-mount-a", 0), os.memfd_create("ckptstore-mount-b", 0)

    def lines(self) -> Iterator[Line]:
        """What was written, oldest first; nothing for a new mount."""
        for line in _whole_lines(self._current):
            if line[0] not in ("epoch", _COMPLETE):
                yield line

    def append(self, *lines: Line) -> None:
        data = b"".join(orjson.dumps(line) + b"\n" for line in lines)
        os.pwrite(self._current, data, self._size)
        self._size += len(data)
        if self._size > max(SMALL_BYTES, GROWTH * self._rewritten_bytes):
            self._rewrite()

    def _rewrite(self) -> None:
        spare = self._files[1 - self._files.index(self._current)]
        os.ftruncate(spare, 0)
        place = 0
        for line in (("epoch", self._epoch + 1), *self.state(), (_COMPLETE,)):
            place += os.pwrite(spare, orjson.dumps(line) + b"\n", place)
        old = self._current
        self._epoch, self._current, self._size, self._rewritten_bytes = self._epoch + 1, spare, place, place
        os.ftruncate(old, 0)

    def _newest(self) -> tuple[int, int, int]:
        """epoch, file, size of the newest that is complete. What was cut off at its end is removed."""
        found = (0, self._files[0])
        for file in self._files:
            lines = list(_whole_lines(file))
            if lines and lines[0][0] == "epoch" and any(line[0] == _COMPLETE for line in lines) and lines[0][1] > found[0]:
                found = (lines[0][1], file)
        epoch, file = found
        if epoch == 0 and os.fstat(file).st_size == 0:
            os.pwrite(file, b'["epoch",0]\n', 0)
        data = _content(file)
        size = data.rfind(b"\n") + 1
        os.ftruncate(file, size)
        return epoch, file, size


def _content(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def _whole_lines(file: int) -> Iterator[Line]:
    data = _content(file)
    for line in data[: data.rfind(b"\n") + 1].splitlines():
        yield orjson.loads(line)
