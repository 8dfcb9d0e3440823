"""How does an object become a finished file under a temporary name, with every byte of it on the disk?

Blocks of 4 MiB are written by a few threads with O_DIRECT, straight from the source's memory where that is page-aligned and
does not change, through a scratch buffer where not; the tail is padded to a whole page and cut off again. That writes
6.0–6.8 GB/s where buffered writing and fsync give 0.3–1.5 GB/s. A file system that refuses (EINVAL: tmpfs, some overlays and
FUSE mounts) gets the same file through the page cache.

Durable when `write_file` returns: the file's data and size. Not yet its name; that is the caller's part (rename, then fsync
of the folder). After any error the temporary file is gone, as far as the disk lets it.

After a failed fsync nobody knows which pages were written, and the next fsync of the same file may report success for pages
that were dropped (https://lwn.net/Articles/752063/). So the file is thrown away and written anew from the source, once.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count

from ckptstore.failpoints import declare
from ckptstore_tiers import disk_calls
from ckptstore_tiers.checksums import BLOCK_BYTES, DigestedBlocks
from ckptstore_tiers.followed import Follower
from ckptstore_tiers.posix_errors import FULL, UNSUPPORTED
from ckptstore_tiers.private_copy import copy_bytes
from ckptstore_tiers.scratch import ScratchPool
from ckptstore_tiers.sources import ALIGNMENT_BYTES, is_aligned

CREATE = declare("posix.put.create")
ALLOCATE = declare("posix.put.fallocate")
WRITE = declare("posix.put.write")
CUT_TAIL = declare("posix.put.ftruncate")
SYNC = declare("posix.put.fsync")
DISCARD = declare("posix.put.discard")

#: The default. Four writes in flight fill the NVMe disk it was measured on; meanwhile two more threads copy and hash the next blocks, which
#: takes 140 ms of a processor a GiB (200 ms with scratch of small pages; hashing alone 60 ms). `bench tiers` finds another disk's best.
WRITE_THREADS = 6


@dataclass(frozen=True)
class WriteWays:
    """How files are written on this mount: `threads` at once, at most `call_bytes` in one system call, a whole number of pages."""

    direct: bool
    preallocate: bool
    threads: int = WRITE_THREADS
    call_bytes: int = BLOCK_BYTES


class _FsyncFailed(Exception):
    """The fsync of a temporary file failed; what the device said is the cause."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def write_file(
    name: str, size_bytes: int, fill: Callable[[int, bool], None], *, dir_fd: int, ways: WriteWays, must_be_direct: bool = False
) -> None:
    """Make `name` in the folder `dir_fd`, let `fill(fd, direct)` write it, cut it to size, fsync it.

    Falls back to the page cache when O_DIRECT is refused, unless `must_be_direct`, and starts anew once after a failed fsync.
    Raises OSError, and what `fill` raises; then the file has been removed.
    """
    direct, fsync_failures = ways.direct, 0
    while True:
        try:
            _write_once(name, size_bytes, fill, dir_fd=dir_fd, direct=direct, preallocate=ways.preallocate)
            return
        except _FsyncFailed as failed:
            fsync_failures += 1
            if fsync_failures > 1 or failed.error.errno in FULL:
                raise failed.error from None
        except OSError as error:
            if not direct or must_be_direct or error.errno != errno.EINVAL:
                raise
            direct = False


def _write_once(
    name: str, size_bytes: int, fill: Callable[[int, bool], None], *, dir_fd: int, direct: bool, preallocate: bool
) -> None:
    """1. create, 2. allocate, 3. write, 4. cut the padding, 5. fsync: a crash after any of them leaves an unfinished file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | (os.O_DIRECT if direct else 0)
    finished = False
    try:
        fd = disk_calls.open_file(CREATE, name, flags, dir_fd=dir_fd)
        try:
            padded_bytes = -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            if preallocate and size_bytes:
                _allocate(fd, padded_bytes)
            fill(fd, direct)
            if padded_bytes != size_bytes:
                disk_calls.ftruncate(CUT_TAIL, fd, size_bytes)
            _sync(fd)
            finished = True
        finally:
            os.close(fd)
    finally:
        if not finished:
            discard(name, dir_fd=dir_fd)


def _allocate(fd: int, size_bytes: int) -> None:
    try:
        disk_calls.fallocate(ALLOCATE, fd, size_bytes)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise  # ENOSPC above all: better now than after half the bytes


def _sync(fd: int) -> None:
    try:
        disk_calls.fsync(SYNC, fd)
    except OSError as error:
        raise _FsyncFailed(error) from error


def discard(name: str, *, dir_fd: int) -> None:
    """Remove a temporary file. If even that fails, the sweep removes it later: the error at hand is the one to report."""
    with suppress(OSError):
        disk_calls.unlink(DISCARD, name, dir_fd=dir_fd)


def write_all(fd: int, view: memoryview, offset: int, call_bytes: int = BLOCK_BYTES) -> None:
    """All bytes of `view` at `offset`, however many calls it takes."""
    written = 0
    while written < len(view):
        written += disk_calls.pwrite(WRITE, fd, view[written : written + call_bytes], offset + written)


class BlockWriter:
    """Writes the blocks of one source into one open file, with the tier's threads and buffers."""

    def __init__(
        self, blocks: DigestedBlocks, executor: Executor, scratch: ScratchPool, ways: WriteWays, follower: Follower | None = None
    ) -> None:
        self._blocks = blocks
        self._follower = follower
        self._ways = ways
        self._executor = executor
        self._scratch = scratch

    def fill(self, fd: int, direct: bool) -> None:
        """Write every block, and tell who follows. A small object is written by the calling thread: handing over would cost too much."""
        if self._follower is not None:
            self._follower.begun(fd)
        remaining, failed = count(), threading.Event()
        threads = min(self._ways.threads, self._blocks.count)
        if threads <= 1:
            self._write_blocks(fd, direct, remaining, failed)
            return
        # What is followed comes from afar, slowly: it gets threads of its own, or saves would wait for them.
        own = ThreadPoolExecutor(threads, "ckptstore-followed") if self._follower is not None else None
        with own or nullcontext():
            running = [(own or self._executor).submit(self._write_blocks, fd, direct, remaining, failed) for _ in range(threads)]
            wait(running)  # for all of them, failed or not: no thread may still write when the descriptor is closed
        for task in running:
            task.result()

    def _write_blocks(self, fd: int, direct: bool, remaining: count[int], failed: threading.Event) -> None:
        """Take block after block until none is left or one thread fails. `next` on a shared counter is atomic in CPython."""
        try:
            with self._scratch.borrow() as scratch, self._scratch.borrow() as bounce:
                while not failed.is_set() and (index := next(remaining)) < self._blocks.count:
                    self._blocks.pump(index, scratch, partial(self._write_block, fd, direct, index * BLOCK_BYTES, bounce))
                    if self._follower is not None:
                        self._follower.stored(index)
        except BaseException:
            failed.set()
            raise

    def _write_block(self, fd: int, direct: bool, offset: int, bounce: memoryview, view: memoryview) -> None:
        if direct:
            view = _aligned(view, bounce)
        write_all(fd, view, offset, self._ways.call_bytes)


def _aligned(view: memoryview, bounce: memoryview) -> memoryview:
    """`view` itself if O_DIRECT can write it, else a copy in `bounce`, padded with zeros to a whole page."""
    padded_bytes = -(-len(view) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    if padded_bytes == len(view) and is_aligned(view):
        return view
    copy_bytes(view, bounce[: len(view)])
    bounce[len(view) : padded_bytes] = bytes(padded_bytes - len(view))
    return bounce[:padded_bytes]
