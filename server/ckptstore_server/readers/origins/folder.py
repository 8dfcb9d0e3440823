"""A local folder, or one of a mounted file system, under the namespace.

A version is inode, mtime, ctime and size. A file's times are as coarse as its file system's clock, so a change right after another may keep
them: a file that changed less than two seconds ago is not read before these are over and it is still the same. A read looks at the open
file before and after: what came in between is of the version that was pinned, or StaleVersion. (Programs that write through a shared
mapping change bytes before they change times; what they write is not to be attached while they do.)

Nothing outside the folder is reachable, see `beneath`. Links to files inside are followed; links to folders are left out, since they can
make circles. A folder's order is its file system's, so a page of names costs a look at all of them: a stretch of names is kept from one
page to the next, never all.
"""

from __future__ import annotations

import errno
import heapq
import os
import stat
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ckptstore.errors import NotFound, StaleVersion, TierUnavailable
from ckptstore_server.readers.origin import FileVersion
from ckptstore_server.readers.origins.beneath import open_beneath
from ckptstore_server.readers.origins.storage import Found, FoundPage, inside, is_storable
from ckptstore_tiers.posix_errors import from_os_error

#: How long the times of a file say nothing about its newest changes.
YOUNG_S = 2.0
#: Names that one look at a folder brings, and how long they are good for the pages that follow.
STRETCH, STRETCH_S = 20_000, 10.0
#: So many listings at once do not disturb each other.
STRETCHES = 8
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG})


@dataclass(frozen=True)
class _Stretch:
    """Names of a folder, in byte order."""

    folder: str
    after: str  # they follow this one
    names: list[str]
    last: bool  # nothing follows them
    skipped: int  # in the whole folder: names that no path can have
    seen_s: float

    def covers(self, folder: str, after: str) -> bool:
        """Whether it has, or would have, what follows `after`. A listing that begins looks anew."""
        there = self.folder == folder and "" != after >= self.after and time.monotonic() - self.seen_s < STRETCH_S
        return there and (self.last or after < self.names[-1])


class FolderStorage:
    def __init__(self, root: Path, *, young_s: float | None = None) -> None:
        self.identity = f"folder {root}"
        self._root = root
        self._prefix = f"{str(root).rstrip('/')}/"
        self._young_s = YOUNG_S if young_s is None else young_s
        self._lock = threading.Lock()
        self._stretches: deque[_Stretch] = deque(maxlen=STRETCHES)

    def look(self, name: str) -> Found:
        with self._translated("stat", name), self._opened(name, os.O_PATH) as fd:
            found = self._found(name, os.fstat(fd))
        if found is None:
            raise NotFound("it is neither a file nor a folder", operation="stat", subject=self.where(name))
        return found

    def page(self, folder: str, after: str, limit: int) -> FoundPage:
        with self._translated("list", folder), self._opened(folder, os.O_RDONLY | os.O_DIRECTORY) as fd:
            page = self._names(fd, folder, after, limit)
            entries = [self._entry(fd, folder, name) for name in page.names]
        kept = tuple(entry for entry in entries if entry is not None)
        return FoundPage(kept, None if page.last else page.names[-1], page.skipped + len(entries) - len(kept))

    def read_into(self, file: FileVersion, offset_bytes: int, into: memoryview) -> None:
        view = into.cast("B")
        try:
            with self._translated("read", file.name), self._opened(file.name, os.O_RDONLY | os.O_NONBLOCK) as fd:
                self._require(file, fd)
                while len(view) and (count := os.preadv(fd, [view], offset_bytes)):
                    offset_bytes += count
                    view = view[count:]
                self._require(file, fd)
        except NotFound as error:
            raise StaleVersion("it was removed", operation="read", subject=self.where(file.name)) from error
        if len(view):
            raise StaleVersion("it became shorter", operation="read", subject=self.where(file.name))

    def where(self, name: str) -> str:
        return f"{self._prefix}{name}" if name else str(self._root)  # of each entry of a listing: `Path` takes seven microseconds to say so

    def close(self) -> None:
        """Nothing is held open."""

    def _require(self, file: FileVersion, fd: int) -> None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or _version(status) != file.upstream:
            raise StaleVersion("it was changed since it was opened", operation="read", subject=self.where(file.name))

    def _entry(self, folder_fd: int, folder: str, leaf: str) -> Found | None:
        """What a folder has under one name; None for what readers do not get to see."""
        try:
            status = os.stat(leaf, dir_fd=folder_fd, follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                return self._found(inside(folder, leaf), status)
            with self._opened(inside(folder, leaf), os.O_PATH) as fd:
                target = self._found(inside(folder, leaf), os.fstat(fd))
            return None if target is None or target.is_folder else target
        except OSError as error:
            if error.errno in _ABSENT:  # it is gone meanwhile, or a link that leads out or nowhere
                return None
            raise

    def _found(self, name: str, status: os.stat_result) -> Found | None:
        if stat.S_ISDIR(status.st_mode):
            return Found(name, is_folder=True, modified_s=status.st_mtime)
        if not stat.S_ISREG(status.st_mode):
            return None
        age_s = time.time() - status.st_ctime
        settles_in_s = min(self._young_s, max(0.0, self._young_s - age_s))
        return Found(
            name,
            size_bytes=status.st_size,
            modified_s=status.st_mtime,
            upstream=_version(status),
            best_effort=settles_in_s > 0,
            settles_in_s=settles_in_s,
        )

    def _names(self, fd: int, folder: str, after: str, limit: int) -> _Stretch:
        """At most so many names that follow `after`."""
        with self._lock:
            # The newest: an older one was looked at for a listing that began before this one.
            known = next((stretch for stretch in reversed(self._stretches) if stretch.covers(folder, after)), None)
        if known is None:
            skipped = 0

            def names() -> Iterator[str]:
                nonlocal skipped
                with os.scandir(fd) as found:
                    for entry in found:
                        if not is_storable(entry.name):
                            skipped += 1
                        elif entry.name > after:
                            yield entry.name

            room = max(STRETCH, limit)
            first = heapq.nsmallest(room + 1, names())
            known = _Stretch(folder, after, first[:room], len(first) <= room, 0 if after else skipped, time.monotonic())
            with self._lock:
                self._stretches.append(known)
        following = known.names[bisect_right(known.names, after) :]
        last = known.last and len(following) <= limit
        return replace(known, names=following[:limit], last=last, skipped=0 if after else known.skipped)

    @contextmanager
    def _opened(self, name: str, flags: int) -> Iterator[int]:
        """A descriptor below the root; NotFound for what is not there or lies outside, TierUnavailable if the root is gone."""
        try:
            root_fd = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            why = f"the attached folder cannot be opened: {error.strerror}"
            raise TierUnavailable(why, operation="open", subject=str(self._root), hint="is it mounted?") from error
        try:
            fd = open_beneath(root_fd, name, flags)
        finally:
            os.close(root_fd)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _translated(self, operation: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _ABSENT:
                why = "the way to it leads out of the attached folder" if error.errno == errno.EXDEV else "nothing is there"
                raise NotFound(why, operation=operation, subject=self.where(name)) from error
            raise from_os_error(error, operation=operation, key=self.where(name), tier=str(self._root)) from error


def _version(status: os.stat_result) -> str:
    return f"{status.st_ino}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_size}"
