"""Is a read really cold? The page cache is emptied of the files in question, then looked at: if they stayed, the measurement refuses.

posix_fadvise(DONTNEED) drops clean pages of a file; as root, /proc/sys/vm/drop_caches drops all. mincore(2) then counts what stayed. A
cache of the disk itself or of a hypervisor below is beyond this; every contender has the same one.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from ckptstore.errors import TierUnavailable
from ckptstore_tiers.prefault import prefault

_LIBC = ctypes.CDLL(None, use_errno=True)
_DROP = Path("/proc/sys/vm/drop_caches")
#: A read with more than this fraction of its file in the page cache is not called cold.
MAX_RESIDENT = 0.01


def make_cold(files: Iterable[Path], *, whole_cache: bool = True) -> None:
    """Drop the files from the page cache, and as root, unless told not to, everything else with them. TierUnavailable if they stay."""
    files = list(files)
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if whole_cache and may_drop():
        drop_memory()
    for file in files:
        resident = resident_fraction(file)
        if resident > MAX_RESIDENT:
            why = f"{resident:.0%} of the file stay in the page cache, so nothing here can be measured cold"
            raise TierUnavailable(why, operation="drop caches", subject=str(file), hint="run as root, on a disk and not on tmpfs")


def may_drop() -> bool:
    """Whether everything can leave the page cache: root may."""
    return os.access(_DROP, os.W_OK)


def drop_memory() -> None:
    """All clean pages, names and attributes of all file systems. PermissionError without `may_drop`."""
    os.sync()
    _DROP.write_text("3\n", "ascii")


def drop_for(size_bytes: int) -> None:
    """`drop_memory`, and so much memory for what is read next."""
    drop_memory()
    own_memory(size_bytes)


def own_memory(size_bytes: int) -> None:
    """Touch so much of the free memory, at most half of it, in huge pages.

    Free memory of a virtual machine may have gone back to its host; whoever takes it next pays for that, which on a host of ours made one
    and the same read cost between once and three times the work. So it is paid for before the clock runs, for every contender alike.
    """
    size_bytes = min(size_bytes, psutil.virtual_memory().available // 2)
    with contextlib.suppress(OSError), mmap.mmap(-1, max(size_bytes, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        with memoryview(memory) as view:
            prefault(view)


def resident_fraction(file: Path) -> float:
    size_bytes = file.stat().st_size
    if size_bytes == 0:
        return 0.0
    pages = -(-size_bytes // mmap.PAGESIZE)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        seen = (ctypes.c_ubyte * pages)()
        failed = _LIBC.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size_bytes), seen)
        del first
        if failed:
            raise OSError(ctypes.get_errno(), "mincore", str(file))
    return sum(page & 1 for page in seen) / pages
