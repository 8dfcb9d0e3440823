"""How do whole files and folders enter the store, and leave it? Put: atomically, by descriptor or stream. Get: verified, complete
or not at all.

A put walks the folder first and refuses by name what is neither file nor folder; links to files and folders are followed, loops
refused. The publish makes all files visible at once. A get writes into a temporary name beside the destination, fsyncs, and
renames: a crash before the rename leaves only a name that begins with `.ckptstore-`, after it all of it. With `replace`, a file
is swapped by the rename; a folder that is there is moved aside first and removed after.

Several files (put) or blocks (get) move at once, on threads that live as long as the call.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ckptstore.bundle import SMALL_FILE_BYTES, in_parts, pack
from ckptstore.errors import AlreadyExists, CkptStoreError, InvalidInput, NotFound, TierFull, TierUnavailable
from ckptstore.paths import check_relative
from ckptstore.wire import BundleStored, FileInfo
from ckptstore_client.reading import VerifiedObject
from ckptstore_client.transport import Transport

PUT_WORKERS = 4
_TEMPORARY = ".ckptstore-"
_BYTES = {"content-type": "application/octet-stream"}

#: Hears of a put or get while it goes on: bytes that have arrived, and bytes in all. Called from any thread, one call at a time.
Progress = Callable[[int, int], None]


class Tally:
    """Counts what has arrived. Thread-safe."""

    def __init__(self, total_bytes: int, report: Progress | None) -> None:
        self._done_bytes = 0
        self._total_bytes = total_bytes
        self._report = report
        self._lock = threading.Lock()

    def expect(self, size_bytes: int) -> None:
        """There is more to come than was known."""
        with self._lock:
            self._total_bytes += size_bytes

    def add(self, size_bytes: int) -> None:
        if self._report is not None:
            with self._lock:
                self._done_bytes += size_bytes
                self._report(self._done_bytes, self._total_bytes)


# --- put ----------------------------------------------------------------------------------------------------


def files_to_put(local: Path) -> dict[str, Path]:
    """name in the store → file. One file has the name "". InvalidInput, by name, for anything that is neither file nor folder."""
    kind = _kind(local)
    if kind == "file":
        return {"": local}
    found = dict(_walk(local, "", frozenset()))
    if not found:
        raise InvalidInput("the folder holds no file", operation="put", subject=str(local))
    return found


def _walk(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, Path]]:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        raise InvalidInput("a link leads back to a folder that it is in", operation="put", subject=str(folder))
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from error
    for child in children:
        name = check_relative(prefix + child.name, operation="put")
        if _kind(child) == "file":
            yield name, child
        else:
            yield from _walk(child, name + "/", above | {identity})


def _kind(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        why = "a link that leads nowhere" if path.is_symlink() else "there is no such file"
        raise (InvalidInput if path.is_symlink() else NotFound)(why, operation="put", subject=str(path)) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    raise InvalidInput("it is neither a file nor a folder (a socket, device or pipe)", operation="put", subject=str(path))


def _unreadable(path: Path, error: OSError) -> InvalidInput:
    return InvalidInput(f"it cannot be read: {error.strerror}", operation="put", subject=str(path))


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def store_files(transport: Transport, attempt_id: str, files: dict[str, Path], progress: Progress | None = None) -> None:
    """Each file into the attempt, several at once, small ones by the bundle; durable at return. The first error ends it."""
    sizes = {name: _size_bytes(path) for name, path in files.items()}
    tally = Tally(sum(sizes.values()), progress)

    def store(name: str) -> None:
        with _open_file(files[name]) as (fd, size_bytes):
            transport.store_file(attempt_id, name, fd, size_bytes)
        tally.add(size_bytes)

    def store_bundle(names: list[str]) -> None:
        contents = {name: _small_content(files[name]) for name in names}
        small = [(name, content) for name, content in contents.items() if content is not None]
        if small:
            transport.api.call("PUT", f"attempts/{attempt_id}/bundle", BundleStored, content=pack(small), headers=_BYTES)
            tally.add(sum(len(content) for _, content in small))
        for name, content in contents.items():
            if content is None:
                store(name)

    parts = list(in_parts(sizes, sizes.__getitem__))
    alone, bundles = [names[0] for names in parts if len(names) == 1], [names for names in parts if len(names) > 1]
    with ThreadPoolExecutor(min(PUT_WORKERS, len(files)), thread_name_prefix="ckptstore-put") as executor:
        futures = [*(executor.submit(store, name) for name in alone), *(executor.submit(store_bundle, names) for names in bundles)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _open_file(path: Path) -> Iterator[tuple[int, int]]:
    """A descriptor, and the file's size now."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInput("it is no longer a plain file", operation="put", subject=str(path))
        yield fd, status.st_size
    finally:
        os.close(fd)


def _small_content(path: Path) -> bytes | None:
    """The file's bytes; None if it is not small any more, or changes while it is read: then it goes by itself, like a large one."""
    with _open_file(path) as (fd, size_bytes):
        if size_bytes > SMALL_FILE_BYTES:
            return None
        try:
            content = os.read(fd, size_bytes + 1)
        except OSError as error:
            raise _unreadable(path, error) from error
        return content if len(content) == size_bytes else None


# --- get ----------------------------------------------------------------------------------------------------


@contextmanager
def arriving(local: Path, *, folder: bool, replace: bool) -> Iterator[Path]:
    """A temporary place beside `local`; when the block ends well it is moved there, else removed. AlreadyExists unless `replace`."""
    if not replace and os.path.lexists(local):
        raise AlreadyExists("something is there already", operation="get", subject=str(local), hint="replace=True overwrites it")
    temporary = local.with_name(f"{_TEMPORARY}{os.getpid()}-{os.urandom(8).hex()}")
    try:
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            if folder:
                temporary.mkdir()
            yield temporary
            _move_into_place(temporary, local, folder=folder, replace=replace)
        except OSError as error:
            raise _unwritable(local, error) from error
    finally:
        _remove(temporary)


def _move_into_place(temporary: Path, local: Path, *, folder: bool, replace: bool) -> None:
    if folder:
        for place, _, _ in os.walk(temporary):
            _fsync_folder(Path(place))
    aside: Path | None = None
    if replace and os.path.lexists(local) and (folder or local.is_dir()):
        aside = temporary.with_name(temporary.name + "-old")
        local.rename(aside)
    try:
        if replace or folder:
            temporary.rename(local)
        else:
            _link_into_place(temporary, local)
    except OSError:
        if aside is not None:
            aside.rename(local)
        raise
    _fsync_folder(local.parent)
    if aside is not None:
        _remove(aside)


def _link_into_place(temporary: Path, local: Path) -> None:
    """Unlike a rename, a link fails if somebody has made `local` meanwhile. A file system without links gets the rename."""
    try:
        os.link(temporary, local)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            raise
        temporary.rename(local)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _fsync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(reader: VerifiedObject, target: Path, tally: Tally) -> None:
    """The object's verified bytes into a new file, fsynced."""

    def write(offset: int, view: memoryview) -> None:
        write_at(fd, offset, view)
        tally.add(len(view))

    with new_file(target, reader.file.size_bytes) as fd:
        reader.each_block(write)
        os.fsync(fd)


@contextmanager
def new_file(target: Path, size_bytes: int) -> Iterator[int]:
    """A new file of that size, open for writing. What the system says against it, here or inside, is an error of `get`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.truncate(fd, size_bytes)
            yield fd
        finally:
            os.close(fd)
    except OSError as error:
        raise _unwritable(target, error) from error


def write_at(fd: int, offset: int, view: memoryview) -> None:
    written = 0
    while written < len(view):
        written += os.pwrite(fd, view[written:], offset + written)


def _unwritable(path: Path, error: OSError) -> CkptStoreError:
    if isinstance(error, FileExistsError):
        return AlreadyExists("something is there already", operation="get", subject=str(path), hint="replace=True overwrites it")
    kind = TierFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else TierUnavailable if error.errno == errno.EIO else InvalidInput
    return kind(f"it cannot be written: {error.strerror}", operation="get", subject=str(path))


def local_name(file: FileInfo) -> str:
    """The file's name, checked again here: it comes from outside, and must not lead out of the folder that is being written."""
    return check_relative(file.name, operation="get") if file.name else ""
