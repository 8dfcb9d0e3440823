"""How are requests read from the kernel and answered? One descriptor of /dev/fuse, which is the mount: while one process has it open, the
mount lives.

Any number of threads may read and reply at once: each read takes one whole request, each write is one whole reply. A reply to a request
that the kernel has given up (ENOENT) is no error. The device's end (ENODEV: unmounted; ECONNABORTED: aborted) raises Unmounted.

Mounting needs root (mount(2)); another user's mount is made by the setuid program fusermount3, and passthrough is root's alone.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ckptstore.errors import CkptStoreError, InvalidInput, NotFound, Unauthorized
from ckptstore_client.mount import protocol

DEVICE = "/dev/fuse"
#: What `mount`, `findmnt` and /proc/self/mountinfo call it.
FILESYSTEM = "fuse.ckptstore"

_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_DETACH = 2
_BACKING_MAP = struct.Struct("=iI8x")
_BACKING_OPEN = 0x4010E501  # _IOW(229, 1, struct fuse_backing_map)
_BACKING_CLOSE = 0x4004E502  # _IOW(229, 2, uint32_t)

_libc = ctypes.CDLL(None, use_errno=True)


class Unmounted(Exception):
    """The kernel has ended the mount. Not an error: that is how serving ends."""


# --- mounting ---------------------------------------------------------------------------------------------------------------------------


def mount(mountpoint: Path, *, allow_other: bool) -> int:
    """A new mount at an empty place, and the descriptor that serves it. Nothing answers there before somebody does."""
    if not mountpoint.is_dir():
        raise NotFound("the mount point is no folder", operation="mount", subject=str(mountpoint), hint=f"mkdir -p {mountpoint}")
    return _mount_as_root(mountpoint, allow_other) if os.geteuid() == 0 else _mount_by_program(mountpoint, allow_other)


def _mount_as_root(mountpoint: Path, allow_other: bool) -> int:
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = "in a container: --device /dev/fuse --cap-add SYS_ADMIN; or use `ckptstore pull`"
        raise Unauthorized(f"{DEVICE}: {error.strerror}", operation="mount", subject=str(mountpoint), hint=hint) from error
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions,max_read={protocol.MAX_READ_BYTES}"
    if allow_other:
        options += ",allow_other"
    flags = ctypes.c_ulong(_MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    if _libc.mount(b"ckptstore", os.fsencode(mountpoint), FILESYSTEM.encode(), flags, options.encode()) != 0:
        code = ctypes.get_errno()
        os.close(fd)
        denied = "mounting needs CAP_SYS_ADMIN; `ckptstore pull` gives plain files instead" if code == errno.EPERM else None
        raise Unauthorized(f"the kernel refused: {os.strerror(code)}", operation="mount", subject=str(mountpoint), hint=denied)
    return fd


def _mount_by_program(mountpoint: Path, allow_other: bool) -> int:
    """fusermount3 mounts for an ordinary user, and sends the descriptor over a socket whose number it finds in its environment."""
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        why = "an ordinary user mounts by fusermount3, which is not there"
        hint = "install the package fuse3, or mount as root; `ckptstore pull` gives plain files instead"
        raise Unauthorized(why, operation="mount", subject=str(mountpoint), hint=hint)
    ours, theirs = socket.socketpair()
    options = f"ro,nosuid,nodev,fsname=ckptstore,subtype=ckptstore,default_permissions,max_read={protocol.MAX_READ_BYTES}"
    if allow_other:
        options += ",allow_other"
    with ours, theirs:
        done = subprocess.run(
            [program, "-o", options, "--", str(mountpoint)],
            env=os.environ | {"_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise Unauthorized(done.stderr.strip() or "fusermount3 refused", operation="mount", subject=str(mountpoint))
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    return fds[0]


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """InvalidInput if nothing is mounted there; Busy is for who holds files in it, unless `lazy`: then it goes when they do."""
    if os.geteuid() != 0:
        program = shutil.which("fusermount3") or shutil.which("fusermount") or "fusermount3"
        done = subprocess.run([program, "-u", *(["-z"] if lazy else []), "--", str(mountpoint)], capture_output=True, text=True)
        if done.returncode != 0:
            raise InvalidInput(done.stderr.strip(), operation="umount", subject=str(mountpoint))
        return
    if _libc.umount2(os.fsencode(mountpoint), _MNT_DETACH if lazy else 0) != 0:
        code = ctypes.get_errno()
        hint = "close the files that are open in it, or use --lazy" if code == errno.EBUSY else None
        raise InvalidInput(os.strerror(code), operation="umount", subject=str(mountpoint), hint=hint)


# --- serving ----------------------------------------------------------------------------------------------------------------------------


class Device:
    """Owns the descriptor. Thread-safe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, buffer: bytearray) -> protocol.Request:
        """The next request; waits for it. Its body lies in `buffer`, and is gone with the next read into that."""
        while True:
            try:
                size = os.readv(self._fd, [buffer])
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    raise Unmounted from error
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):  # ENOENT: it was interrupted before it was read
                    continue
                raise CkptStoreError(f"{DEVICE}: {error.strerror}", operation="serve mount") from error
            return protocol.read_request(memoryview(buffer)[:size])

    def reply(self, unique: int, *parts: bytes | memoryview) -> None:
        self._write([protocol.reply_header(unique, sum(map(len, parts))), *parts])

    def refuse(self, unique: int, code: int) -> None:
        """Answer with an errno."""
        self._write([protocol.reply_header(unique, 0, code)])

    def notify(self, code: protocol.Notify, body: bytes = b"") -> None:
        """Tell the kernel something it did not ask. Never from a thread that must answer requests: the kernel may wait for those first."""
        self._write([protocol.notice(code, body)])

    def _write(self, parts: Sequence[bytes | memoryview]) -> None:
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                raise Unmounted from error
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):  # nobody waits for it any more, or the kernel knows no such entry
                raise CkptStoreError(f"{DEVICE}: {error.strerror}", operation="serve mount") from error

    def open_backing(self, fd: int) -> int | None:
        """Have the kernel read the file behind `fd` itself, under the id that is returned; None: it may not, or cannot with this file."""
        try:
            backing_id: int = fcntl.ioctl(self._fd, _BACKING_OPEN, bytearray(_BACKING_MAP.pack(fd, 0)), True)
        except OSError:
            return None
        return backing_id

    def close_backing(self, backing_id: int) -> None:
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._fd, _BACKING_CLOSE, array.array("I", [backing_id]), False)

    def close(self) -> None:
        os.close(self._fd)


def raise_read_ahead(mountpoint: Path, size_bytes: int) -> bool:
    """The kernel starts a mount with 128 KiB of read-ahead, whatever was agreed; sysfs lets root raise it. False: it could not be."""
    device = device_of(mountpoint)
    if device is None:
        return False
    try:
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(size_bytes // 1024), "ascii")
    except OSError:
        return False
    return True


def device_of(mountpoint: Path) -> str | None:
    """`major:minor` of our mount there, without asking the mount itself; None if none of ours is there."""
    wanted = os.fspath(mountpoint)
    found = None
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        place = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
        if place == wanted:  # of two at one place the later covers the earlier
            found = fields[2] if right.split()[0] == FILESYSTEM else None
    return found
