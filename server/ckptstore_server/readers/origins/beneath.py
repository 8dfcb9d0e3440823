"""How is a file below a folder opened so that no name, link or race leads out of it? By openat2 with RESOLVE_BENEATH (Linux 5.6).

The kernel refuses with EXDEV whatever would leave the folder on the way: `..` above it, absolute links, links that lead out. Links that
stay inside are followed. A check of ours before the open would race with whoever changes the folder.
"""

from __future__ import annotations

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)
#: The same number on all architectures.
_OPENAT2 = 437
_NO_MAGIC_LINKS, _BENEATH = 0x02, 0x08
#: The kernel answers EAGAIN when a rename raced with its check of the path.
_TRIES = 128


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(folder_fd: int, name: str, flags: int) -> int:
    """A descriptor of `name` below the folder. OSError; EXDEV if the way leads out of it."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _BENEATH | _NO_MAGIC_LINKS)
    encoded = os.fsencode(name or ".")
    for _ in range(_TRIES):
        fd = _libc.syscall(_OPENAT2, ctypes.c_int(folder_fd), encoded, ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)))
        if fd >= 0:
            return int(fd)
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), name)
