"""How does a part of the tree become plain files of this machine, for a container without FUSE? Cloned where the disk can, else copied.

A file that the node has whole is cloned (FICLONE): that takes no time and no space, and the clone is a file of its own, which nothing that
happens to the cache can reach. Where the file system cannot, the kernel copies. What is not on the node is copied block by block while it
arrives. Never is a hard link made: the cache evicts by unlinking, and a link would keep, and give away, its inode.

All of it appears at once, by a rename, or nothing does. One pull is one state of the tree: each file's version is fixed when it is listed.
A file carries its version in the attribute `user.ckptstore.version`, where the file system has such; a pull that finds all as it should be
leaves it as it is.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ckptstore.errors import InvalidInput, TierUnavailable
from ckptstore.paths import check_relative
from ckptstore.tree_messages import TreeInfo
from ckptstore_client.files import Progress, Tally, arriving, new_file, write_at
from ckptstore_client.mount.source import Copy, Source

PULL_WORKERS = 4
#: Copied, or waited for, at once.
STEP_BYTES = 16 << 20
VERSION_ATTRIBUTE = "user.ckptstore.version"
_FICLONE = 0x40049409
_CANNOT_CLONE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ETXTBSY)
_CANNOT_COPY = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM)


@dataclass(frozen=True)
class Owner:
    """Who the files are to belong to, for a container that runs as somebody else."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Pulled:
    path: str
    local: Path
    files: int
    size_bytes: int
    cloned_bytes: int
    #: everything was there already, and nothing was written
    current: bool = False


def pull(
    source: Source, path: str, local: Path, *, replace: bool = False, owner: Owner | None = None, progress: Progress | None = None
) -> Pulled:
    """What is at `path`, as plain files at `local`; durable and complete at return. AlreadyExists, unless `replace`."""
    root = _resolved(source, path)
    found = [(_name_below(root.path, info), info) for info in _walk(source, root)]
    files = [(name, info) for name, info in found if info.kind == "file"]
    size_bytes = sum(info.size_bytes for _, info in files)
    if _is_current(local, found):
        return Pulled(root.path, local, len(files), size_bytes, 0, current=True)
    tally = Tally(size_bytes, progress)
    with arriving(local, folder=root.kind == "folder", replace=replace) as temporary:
        links = [(name, info) for name, info in found if info.kind == "link"]
        for name in [name for name, info in found if info.kind == "folder"]:
            (temporary / name).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(PULL_WORKERS, thread_name_prefix="ckptstore-pull") as executor:
            written = [executor.submit(_write, source, info, temporary / name if name else temporary, owner, tally) for name, info in files]
            try:
                cloned_bytes = sum(future.result() for future in written)
            except BaseException:
                executor.shutdown(wait=True, cancel_futures=True)
                raise
        for name, info in links:
            if (info.target or "").startswith(root.path + "/"):
                (temporary / name).symlink_to(os.path.relpath(info.target or "", Path(info.path).parent))
        if owner is not None:
            _give(temporary, owner)
    return Pulled(root.path, local, len(files), size_bytes, cloned_bytes)


def _resolved(source: Source, path: str) -> TreeInfo:
    info = source.info(path)
    while info.kind == "link":
        info = source.info(info.target or "")
    return info


def _walk(source: Source, top: TreeInfo) -> Iterator[TreeInfo]:
    """`top` if it is a file, else all that is below it."""
    if top.kind != "folder":
        yield top
        return
    after: str | None = None
    while True:
        page = source.list(top.path, after)
        for info in page.entries:
            yield info
            if info.kind == "folder":
                yield from _walk(source, info)
        if page.after is None:
            return
        after = page.after


def _name_below(root: str, info: TreeInfo) -> str:
    """Checked again: it comes from outside, and must not lead out of the folder that is being written."""
    name = info.path[len(root.rstrip("/")) :].removeprefix("/")
    if not name or info.kind == "link":
        if "/../" in f"/{name}/":
            raise InvalidInput("a name leads out of its folder", operation="pull", subject=info.path)
        return name
    return check_relative(name, operation="pull")


def _is_current(local: Path, found: list[tuple[str, TreeInfo]]) -> bool:
    """Whether `local` holds exactly these versions, and nothing else."""
    try:
        there = {"" if local.is_file() else str(place.relative_to(local)) for place in ([local] if local.is_file() else local.rglob("*"))}
        same = all(
            os.getxattr(local / name, VERSION_ATTRIBUTE).decode() == info.version and (local / name).stat().st_size == info.size_bytes
            for name, info in found
            if info.kind == "file"
        )
    except OSError:
        return False
    return bool(found) and same and there <= {name for name, _ in found}


def _write(source: Source, info: TreeInfo, target: Path, owner: Owner | None, tally: Tally) -> int:
    """One file, durable; how many of its bytes were cloned."""
    copy = source.open(info.path, info.version)
    try:
        with new_file(target, info.size_bytes) as fd:
            cloned = copy.whole and copy.fd >= 0 and info.size_bytes > 0 and _clone(copy.fd, fd)
            if cloned:
                tally.add(info.size_bytes)
            else:
                copy = _copy(source, copy, fd, tally)
            os.utime(fd, (info.modified_s, info.modified_s))
            _label(fd, info.version)
            os.fsync(fd)
    finally:
        copy.close()
    return info.size_bytes if cloned else 0


def _clone(source_fd: int, target_fd: int) -> bool:
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError as error:
        if error.errno not in _CANNOT_CLONE:
            raise
        return False
    return True


def _copy(source: Source, copy: Copy, target_fd: int, tally: Tally) -> Copy:
    """All bytes, each once it is there; the copy that was read last, which is the caller's to close."""
    for offset in range(0, copy.size_bytes, STEP_BYTES):
        length = min(STEP_BYTES, copy.size_bytes - offset)
        if not copy.whole and copy.fd >= 0:
            another = source.need(copy, offset, length)
            if another is not None:
                copy.close()
                copy = another
        if copy.fd < 0:
            write_at(target_fd, offset, memoryview(source.read(copy, offset, length)))
        else:
            _copy_range(copy, target_fd, offset, length)
        tally.add(length)
    return copy


def _copy_range(copy: Copy, target_fd: int, offset: int, length: int) -> None:
    end = offset + length
    while offset < end:
        try:
            count = os.copy_file_range(copy.fd, target_fd, end - offset, offset, offset)
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
            data = os.pread(copy.fd, end - offset, offset)
            write_at(target_fd, offset, memoryview(data))
            count = len(data)
        if count == 0:
            raise TierUnavailable(f"the node's copy ends at {offset}", operation="pull", subject=copy.path)
        offset += count


def _label(fd: int, version: str) -> None:
    try:
        os.setxattr(fd, VERSION_ATTRIBUTE, version.encode())
    except OSError:
        return  # a file system without attributes: the next pull copies again


def _give(top: Path, owner: Owner) -> None:
    for place in (top, *(top.rglob("*") if top.is_dir() else ())):
        os.chown(place, owner.uid, owner.gid, follow_symlinks=False)
