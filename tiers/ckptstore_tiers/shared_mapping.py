"""Mapping shared memory so that huge pages fit: at an address that is a multiple of their size.

A huge page of a file is mapped as one only where the file's offset and the address agree modulo its size; the `mmap` module lets the
kernel choose the address, which for a memfd is often an odd page. So a range is reserved first, and the file mapped at the right place
of it. The mapping lives as long as any view of it, as with `mmap.mmap`; there is nothing to close.

`advise` is madvise(2) for any of the memory here: the method of `mmap.mmap` holds the interpreter lock, and knows fewer advices.

Any thread. Source: mmap(2), Documentation/admin-guide/mm/transhuge.rst.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from functools import cache

import numpy as np

#: The size of a huge page on x86 and arm with 4 KiB pages.
HUGE_PAGE_BYTES = 2 << 20
_MAP_FAILED = ctypes.c_void_p(-1).value
_PROT_NONE, _MAP_FIXED, _MAP_NORESERVE = 0, 0x10, 0x4000


def map_shared(fd: int, size_bytes: int, *, writable: bool = True, advice: tuple[int, ...] = ()) -> memoryview:
    """All of the file, shared. Advice that the kernel does not know is left out. OSError; `fd` stays the caller's, open for writing
    where the mapping is to be `writable`."""
    reserved_bytes = size_bytes + HUGE_PAGE_BYTES
    reserved = _map(None, reserved_bytes, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1)
    start = -(-reserved // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    try:
        _map(start, size_bytes, mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0), mmap.MAP_SHARED | _MAP_FIXED, fd)
    except OSError:
        _libc().munmap(reserved, reserved_bytes)
        raise
    end = -(-(start + size_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    if start > reserved:
        _libc().munmap(reserved, start - reserved)
    if reserved + reserved_bytes > end:
        _libc().munmap(end, reserved + reserved_bytes - end)
    for wanted in advice:
        advise(start, size_bytes, wanted)
    memory = (ctypes.c_ubyte * size_bytes).from_address(start)
    weakref.finalize(memory, _libc().munmap, start, end - start).atexit = False
    # A ctypes array calls its bytes "<B", which memoryview does not take for the "B" of everybody else; numpy does.
    whole = np.ctypeslib.as_array(memory)
    whole.flags.writeable = writable
    return whole.data


def advise(address: int, size_bytes: int, advice: int) -> int:
    """The errno of madvise, 0 when it worked."""
    return 0 if _libc().madvise(address, size_bytes, advice) == 0 else ctypes.get_errno()


def _map(address: int | None, size_bytes: int, protection: int, flags: int, fd: int) -> int:
    mapped = _libc().mmap(address, size_bytes, protection, flags, fd, 0)
    if mapped == _MAP_FAILED:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(mapped)


@cache
def _libc() -> ctypes.CDLL:
    """A CDLL drops the interpreter lock during its calls."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    library.mmap.restype = ctypes.c_void_p
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library
