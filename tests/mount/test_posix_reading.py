"""The mount against a folder that Linux itself keeps read-only: operation by operation, the same answer or the same errno.

The other side is a bind mount of the very folder that is served, made read-only, so that what the kernel answers to changes is compared,
too. Paths go to the system as they are: pathlib would tidy them.
"""

# ruff: noqa: PTH101, PTH104, PTH112, PTH115, PTH116, PTH211

from __future__ import annotations

import ctypes
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.mount.mounts import Mounted, can_mount, mark

pytestmark = can_mount

_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MNT_DETACH = 1, 32, 4096, 2
SIZES = {"empty": 0, "one": 1, "page": 4096, "odd": 70_001, "cold": 300_001, "sub/deep": 5000, "sub/ünï": 33}
NAMES = [*SIZES, "", "sub", "link", "dangling", "sub/up", "none", "none/below", "one/below", "sub/..", ".", "sub/./deep", "/", "x" * 255]
CRAFTED = ["x" * 256, "a\nb", "\xff", "sub/" + "y" * 300, "sub//deep", "link/", "one/", "..%2f", "@latest", "@other"]

names = st.sampled_from(NAMES + CRAFTED)
places = st.integers(-10, 400_000)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """(the mount, the read-only folder)"""
    top = tmp_path_factory.mktemp("posix")
    source, plain = top / "source", top / "plain"
    (source / "sub").mkdir(parents=True)
    plain.mkdir()
    for name, size in SIZES.items():
        (source / name).write_bytes(os.urandom(size))
        (source / name).chmod(0o444)
        os.utime(source / name, ns=(0, 1_700_000_000_123_456_000))
    mark(source / "cold", "user.cold")
    (source / "link").symlink_to("sub/deep")
    (source / "dangling").symlink_to("nowhere")
    (source / "sub/up").symlink_to("../odd")
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(bytes(source), bytes(plain), None, _MS_BIND, None) == 0
    try:
        assert libc.mount(None, bytes(plain), None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY, None) == 0
        with Mounted(top, source=source) as mounted:
            yield mounted.path, plain
    finally:
        libc.umount2(bytes(plain), _MNT_DETACH)


def answer(operation: Callable[[str], object], side: Path, name: str) -> object:
    """What came back, or which error."""
    try:
        return operation(f"{side}/{name}")
    except OSError as error:
        return ("errno", error.errno)


def status(found: os.stat_result) -> tuple[object, ...]:
    """What of a status must be the same. Folders have their sizes, link counts and modes each in its own way."""
    if stat.S_ISDIR(found.st_mode):
        return ("folder",)
    return (stat.S_IFMT(found.st_mode), found.st_size, found.st_nlink, found.st_mtime_ns // 1000 if stat.S_ISREG(found.st_mode) else None)


def listed(path: str) -> object:
    with os.scandir(path) as found:
        return sorted((entry.name, entry.is_dir(follow_symlinks=False), *status(entry.stat(follow_symlinks=False))) for entry in found)


def read_at(offset: int, size: int, path: str) -> object:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


def sought(offset: int, whence: int, path: str) -> object:
    if os.path.isdir(path):  # what an offset in a folder means is each file system's own
        return "folder"
    fd = os.open(path, os.O_RDONLY)
    try:
        place = os.lseek(fd, offset, whence)
        return place, os.read(fd, 100)
    finally:
        os.close(fd)


def mapped(offset: int, size: int, path: str) -> object:
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        if length == 0:
            return b""
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
            return memory[max(0, offset) : max(0, offset) + size]


def opened(flags: int, path: str) -> object:
    os.close(os.open(path, flags, 0o600))
    return "opened"


def agree(sides: tuple[Path, Path], operation: Callable[[str], object], name: str) -> None:
    ours, true = (answer(operation, side, name) for side in sides)
    assert ours == true


quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(name=names, follow=st.booleans())
def test_status(sides: tuple[Path, Path], name: str, follow: bool) -> None:
    agree(sides, lambda path: status(os.stat(path, follow_symlinks=follow)), name)


@quick
@given(name=names)
def test_listing_links_and_access(sides: tuple[Path, Path], name: str) -> None:
    agree(sides, listed, name)
    agree(sides, lambda path: os.readlink(path), name)
    for mode in (os.F_OK, os.R_OK):
        agree(sides, lambda path: os.access(path, mode), name)  # noqa: B023


@quick
@given(name=names, offset=places, size=st.integers(0, 200_000))
def test_reading_anywhere(sides: tuple[Path, Path], name: str, offset: int, size: int) -> None:
    agree(sides, lambda path: read_at(offset, size, path), name)
    agree(sides, lambda path: mapped(offset, size, path), name)


@quick
@given(name=names, offset=places, whence=st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, 99]))
def test_seeking(sides: tuple[Path, Path], name: str, offset: int, whence: int) -> None:
    agree(sides, lambda path: sought(offset, whence, path), name)


@quick
@given(
    name=names,
    flags=st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
    | st.sampled_from([os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_DIRECTORY, os.O_NOFOLLOW, os.O_APPEND | os.O_RDWR, os.O_PATH]),
)
def test_opening(sides: tuple[Path, Path], name: str, flags: int) -> None:
    agree(sides, lambda path: opened(flags, path), name)


CHANGES: dict[str, Callable[[str], object]] = {
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "mkdir": os.mkdir,
    "chmod": lambda path: os.chmod(path, 0o600),
    "chown": lambda path: os.chown(path, 1, 1),
    "utime": os.utime,
    "truncate": lambda path: os.truncate(path, 0),
    "mkfifo": os.mkfifo,
    "symlink": lambda path: os.symlink("one", path),
    "setxattr": lambda path: os.setxattr(path, "user.mine", b"1"),
    "removexattr": lambda path: os.removexattr(path, "user.mine"),
    "rename": lambda path: os.rename(path, f"{path}-moved"),
    "link": lambda path: os.link(path, f"{path}-linked"),
}


@quick
@given(name=names, change=st.sampled_from(sorted(CHANGES)))
def test_changing(sides: tuple[Path, Path], name: str, change: str) -> None:
    agree(sides, CHANGES[change], name)
