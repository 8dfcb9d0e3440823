"""Which system calls does crash safety rest on? All of them go through here, each with a label of its call site.

A label is a failpoint (`ckptstore.failpoints`), so that a test can let exactly one call fail, or die right before it. A test
may also install a `Witness`, which sees every call before and after it happened: that is how the power-cut model knows what
has reached the disk. Without either, a call costs one comparison more than `os` alone.

The functions are as thin as the calls: they raise OSError, write or read what the kernel accepts in one go, and retry
nothing. Paths are names relative to an open folder (`dir_fd`), so that no symbolic link inside a tier is ever followed.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ckptstore.failpoints import failpoint

RENAME_NOREPLACE = 1
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


class Witness(Protocol):
    """Sees the calls of this process. `arguments` are the call's own, without the label; `result` is None where it has none."""

    def before(self, label: str, call: str, arguments: tuple[Any, ...]) -> None: ...

    def after(self, label: str, call: str, arguments: tuple[Any, ...], result: Any) -> None: ...


_witness: Witness | None = None


@contextmanager
def witnessed_by(witness: Witness) -> Iterator[None]:
    """Show every call of this process to `witness` during a `with` block."""
    global _witness
    before, _witness = _witness, witness
    try:
        yield
    finally:
        _witness = before


def _before(label: str, call: str, *arguments: Any) -> None:
    if _witness is not None:
        _witness.before(label, call, arguments)
    failpoint(label)


def _after(label: str, call: str, result: Any, *arguments: Any) -> None:
    if _witness is not None:
        _witness.after(label, call, arguments, result)


def open_file(label: str, name: str, flags: int, *, dir_fd: int, mode: int = 0o644) -> int:
    """A descriptor; symbolic links are refused (ELOOP), and a FIFO somebody put there does not block."""
    _before(label, "open", name, flags, dir_fd)
    fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode, dir_fd=dir_fd)
    _after(label, "open", fd, name, flags, dir_fd)
    return fd


def open_folder(label: str, name: str, *, dir_fd: int | None = None) -> int:
    _before(label, "open_folder", name, dir_fd)
    fd = os.open(name, FOLDER_FLAGS if dir_fd is not None else FOLDER_FLAGS & ~os.O_NOFOLLOW, dir_fd=dir_fd)
    _after(label, "open_folder", fd, name, dir_fd)
    return fd


def pwrite(label: str, fd: int, view: memoryview, offset: int) -> int:
    """How many bytes were written: perhaps fewer than given."""
    _before(label, "pwrite", fd, len(view), offset)
    count = os.pwrite(fd, view, offset)
    _after(label, "pwrite", count, fd, len(view), offset)
    return count


def preadv(label: str, fd: int, view: memoryview, offset: int) -> int:
    """How many bytes were read into `view`: 0 at the end of the file."""
    _before(label, "preadv", fd, len(view), offset)
    count = os.preadv(fd, [view], offset)
    _after(label, "preadv", count, fd, len(view), offset)
    return count


def fallocate(label: str, fd: int, size_bytes: int) -> None:
    """Reserve space. glibc's posix_fallocate is not used: where the file system cannot, it writes zeros, slowly."""
    _before(label, "fallocate", fd, size_bytes)
    if _libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size_bytes)) != 0:
        _raise_errno()
    _after(label, "fallocate", None, fd, size_bytes)


def ftruncate(label: str, fd: int, size_bytes: int) -> None:
    _before(label, "ftruncate", fd, size_bytes)
    os.ftruncate(fd, size_bytes)
    _after(label, "ftruncate", None, fd, size_bytes)


def fsync(label: str, fd: int) -> None:
    """Of a file or a folder."""
    _before(label, "fsync", fd)
    os.fsync(fd)
    _after(label, "fsync", None, fd)


def rename(label: str, name: str, new_name: str, *, dir_fd: int, new_dir_fd: int) -> None:
    """Replaces what is at `new_name`."""
    _before(label, "rename", name, new_name, dir_fd, new_dir_fd)
    os.rename(name, new_name, src_dir_fd=dir_fd, dst_dir_fd=new_dir_fd)
    _after(label, "rename", None, name, new_name, dir_fd, new_dir_fd)


def rename_new(label: str, name: str, new_name: str, *, dir_fd: int, new_dir_fd: int) -> None:
    """FileExistsError if `new_name` exists; EINVAL or ENOSYS where the file system or the C library has no such call."""
    _before(label, "rename", name, new_name, dir_fd, new_dir_fd)
    renameat2 = getattr(_libc, "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if renameat2(dir_fd, os.fsencode(name), new_dir_fd, os.fsencode(new_name), RENAME_NOREPLACE) != 0:
        _raise_errno()
    _after(label, "rename", None, name, new_name, dir_fd, new_dir_fd)


def link(label: str, name: str, new_name: str, *, dir_fd: int, new_dir_fd: int) -> None:
    """FileExistsError if `new_name` exists."""
    _before(label, "link", name, new_name, dir_fd, new_dir_fd)
    os.link(name, new_name, src_dir_fd=dir_fd, dst_dir_fd=new_dir_fd, follow_symlinks=False)
    _after(label, "link", None, name, new_name, dir_fd, new_dir_fd)


def unlink(label: str, name: str, *, dir_fd: int) -> None:
    _before(label, "unlink", name, dir_fd)
    os.unlink(name, dir_fd=dir_fd)
    _after(label, "unlink", None, name, dir_fd)


def mkdir(label: str, name: str, *, dir_fd: int) -> None:
    _before(label, "mkdir", name, dir_fd)
    os.mkdir(name, 0o755, dir_fd=dir_fd)
    _after(label, "mkdir", None, name, dir_fd)


def rmdir(label: str, name: str, *, dir_fd: int) -> None:
    _before(label, "rmdir", name, dir_fd)
    os.rmdir(name, dir_fd=dir_fd)
    _after(label, "rmdir", None, name, dir_fd)


def _raise_errno() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
