"""Can a plain folder be served as if it were the tree? Yes: what the file system does without a daemon is seen and measured with it.

The version is inode, time and size, as for an attached folder. An extended attribute `user.cold` makes a file one that is not whole on the
node; `user.absent` keeps its bytes from arriving, until it is removed. No change is told, so no name is believed for longer than a request.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from ckptstore.errors import NotFound, StaleVersion, TierUnavailable
from ckptstore.paths import join, parent_and_name
from ckptstore.tree_messages import FileListing, TreeInfo
from ckptstore_client.mount.source import Changes, Copy, Space

PAGE_ENTRIES = 1000


class LocalFolder:
    def __init__(self, folder: Path, *, patience_s: float = 30.0) -> None:
        self._folder = folder
        self._patience_s = patience_s

    def _place(self, path: str) -> Path:
        return self._folder / path.lstrip("/")

    def info(self, path: str) -> TreeInfo:
        place = self._place(path)
        try:
            status = place.lstat()
        except OSError as error:
            raise NotFound("nothing is there", operation="stat", subject=path) from error
        if stat.S_ISLNK(status.st_mode):
            target = os.path.normpath(Path(parent_and_name(path)[0]) / place.readlink())
            return TreeInfo(path=path, kind="link", target=target, modified_s=status.st_mtime)
        if stat.S_ISDIR(status.st_mode):
            return TreeInfo(path=path, kind="folder", modified_s=status.st_mtime)
        if not stat.S_ISREG(status.st_mode):
            raise NotFound("it is neither file nor folder", operation="stat", subject=path)
        return TreeInfo(
            path=path,
            kind="file",
            size_bytes=status.st_size,
            version=_version(status),
            modified_s=status.st_mtime,
            whole=not _marked(place, "user.cold"),
            origin=str(place),
        )

    def list(self, path: str, after: str | None) -> FileListing:
        try:
            names = sorted((child.name for child in self._place(path).iterdir()), key=os.fsencode)
        except OSError as error:
            raise NotFound("no folder is there", operation="list", subject=path) from error
        left = [name for name in names if after is None or os.fsencode(name) > os.fsencode(after)]
        entries = []
        for name in left[:PAGE_ENTRIES]:
            try:
                entries.append(self.info(join(path, name)))
            except NotFound:
                continue
        return FileListing(entries=entries, after=left[PAGE_ENTRIES - 1] if len(left) > PAGE_ENTRIES else None)

    def open(self, path: str, version: str) -> Copy:
        place = self._place(path)
        try:
            fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise NotFound("nothing is there", operation="open", subject=path) from error
        status = os.fstat(fd)
        if _version(status) != version:
            os.close(fd)
            raise StaleVersion("it is another version now", operation="open", subject=path)
        return Copy(path, version, status.st_size, fd, whole=not _marked(place, "user.cold"))

    def need(self, copy: Copy, offset_bytes: int, size_bytes: int) -> Copy | None:
        deadline = time.monotonic() + self._patience_s
        while _marked(copy.fd, "user.absent"):
            if time.monotonic() > deadline:
                raise TierUnavailable(f"nothing came within {self._patience_s:g} s", operation="read", subject=copy.path)
            time.sleep(0.01)
        return None

    def read(self, copy: Copy, offset_bytes: int, size_bytes: int) -> bytes:
        return os.pread(copy.fd, size_bytes, offset_bytes)

    def space(self) -> Space:
        found = os.statvfs(self._folder)
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, found.f_files - found.f_ffree)

    def changes(self, seen: int) -> Changes:
        time.sleep(1.0)
        raise TierUnavailable("a plain folder tells of no changes", operation="look for changes", subject=str(self._folder))

    def close(self) -> None:
        pass


def _version(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def _marked(place: Path | int, name: str) -> bool:
    try:
        os.getxattr(place, name)
    except OSError:
        return False
    return True
