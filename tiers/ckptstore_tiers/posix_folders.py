"""How are a posix tier's folders reached, made durable, and cleaned away?

Every folder is opened name by name from the root, without following symbolic links, so that nothing inside the root can lead
out of it. The root itself must exist: it is made once, when the tier is opened, and never again, because a root that has
vanished means that its file system is no longer mounted, and what would be written then would land on another disk.

Durable when: the entry of a new folder is on disk once its parent was fsynced. That somebody else has made a folder says
nothing about that, so this process fsyncs the parent of each folder on the way once, and remembers it.

Empty folders are removed on a node's own root only. On a shared mount they stay, at the price of an inode each: other clients
cache them (a second on MooseFS, up to a minute on NFS), and if one is removed and made again meanwhile, those clients do not
find what is in the new one. Seen on MooseFS with two mounts: puts and reads in a folder that the other mount had just
removed failed with ENOENT.

Threading: any thread. One lock orders making and removing folders, so that what is remembered is true.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptstore.errors import TierUnavailable
from ckptstore.failpoints import declare
from ckptstore_tiers import disk_calls
from ckptstore_tiers.keys import UNFINISHED

OPEN_FOLDER = declare("posix.folder.open")
MAKE_FOLDER = declare("posix.folder.mkdir")
SYNC_PARENT = declare("posix.folder.fsync_parent")
REMOVE_FOLDER = declare("posix.folder.rmdir")

#: How many folders are remembered as durable before the memory starts anew: about 10 MB of names.
MAX_REMEMBERED = 65_536


class Folders:
    def __init__(self, root: Path, *, tier: str, shared: bool) -> None:
        self.root = root
        self._tier = tier
        self._shared = shared
        self._durable: set[tuple[str, ...]] = set()
        self._lock = threading.Lock()

    @contextmanager
    def opened(self, names: tuple[str, ...]) -> Iterator[int]:
        """A descriptor of an existing folder. Raises OSError: ENOENT, ENOTDIR or ELOOP if there is no such folder."""
        fd = self._open_root()
        try:
            for name in names:
                fd = self._step(fd, name)
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def deepest(self, names: tuple[str, ...]) -> Iterator[tuple[int, int]]:
        """A descriptor of the deepest folder on the way that exists, and how many of the names lead to it."""
        fd = self._open_root()
        try:
            depth = 0
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for name in names:
                    fd = self._step(fd, name)
                    depth += 1
            yield fd, depth
        finally:
            os.close(fd)

    @contextmanager
    def durable(self, names: tuple[str, ...]) -> Iterator[int]:
        """A descriptor of a folder that is made where needed, with every entry that leads to it on disk."""
        fd = self._open_root()
        try:
            for depth in range(len(names)):
                self._ensure(fd, names[: depth + 1])
                fd = self._step(fd, names[depth])
            yield fd
        finally:
            os.close(fd)

    def remove_empty(self, names: tuple[str, ...]) -> None:
        """Remove a folder, then the ones above it, as long as they are empty; the first level below the root stays.

        Nothing is fsynced: a power cut that brings back an empty folder brings back nothing that anybody can see.
        """
        if self._shared:
            return
        for depth in range(len(names), 1, -1):
            try:
                with self.opened(names[: depth - 1]) as parent, self._lock:
                    self._durable.discard(names[:depth])
                    disk_calls.rmdir(REMOVE_FOLDER, names[depth - 1], dir_fd=parent)
            except OSError:
                return  # not empty, or gone, or failing: it is tidiness only, and the next delete tries again

    def forget(self, names: tuple[str, ...]) -> None:
        """Somebody removed a folder on the way: trust nothing that was remembered about it."""
        with self._lock:
            for depth in range(1, len(names) + 1):
                self._durable.discard(names[:depth])

    @contextmanager
    def unfinished(self) -> Iterator[int]:
        """A descriptor of the folder for unfinished files; TierUnavailable if the root has lost it."""
        try:
            fd = self._step(self._open_root(), UNFINISHED)
        except FileNotFoundError as error:
            raise self._lost() from error
        try:
            yield fd
        finally:
            os.close(fd)

    def check_mounted(self) -> None:
        """Raise TierUnavailable if the root is not the one that was opened; what is missing there then proves nothing."""
        with self.unfinished():
            pass

    def _lost(self) -> TierUnavailable:
        return TierUnavailable(
            f"the folder {UNFINISHED!r} that was made there is gone",
            operation="open root",
            subject=str(self.root),
            tier=self._tier,
            hint="is its file system still mounted? If the folder was emptied on purpose, restart the daemon",
        )

    def _open_root(self) -> int:
        try:
            return disk_calls.open_folder(OPEN_FOLDER, str(self.root))
        except FileNotFoundError as error:
            raise self._lost() from error

    def _step(self, fd: int, name: str) -> int:
        """From a folder to one in it; `fd` is closed in any case but that of an error raised before the open."""
        child = disk_calls.open_folder(OPEN_FOLDER, name, dir_fd=fd)
        os.close(fd)
        return child

    def _ensure(self, parent: int, names: tuple[str, ...]) -> None:
        """1. mkdir: a crash leaves nothing, or an empty folder. 2. fsync of the parent: from here on the folder stays."""
        with self._lock:
            made = self._make(parent, names[-1])
            if not made and names in self._durable:
                return
            disk_calls.fsync(SYNC_PARENT, parent)
            if len(self._durable) >= MAX_REMEMBERED:
                self._durable.clear()
            self._durable.add(names)

    @staticmethod
    def _make(parent: int, name: str) -> bool:
        try:
            os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                disk_calls.mkdir(MAKE_FOLDER, name, dir_fd=parent)
                return True
        return False
