"""How are the bytes of a stored file read: by a reader of an object, and by a tier that checks what really reached the disk?

A reader checks nothing but lengths; whoever asked compares digests. It holds its file open, so it goes on reading the same
bytes after the object was deleted. It may be used by several threads at once: every read names its own position.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from ckptstore.errors import ChecksumMismatch, InvalidInput, NotFound
from ckptstore.failpoints import declare
from ckptstore_tiers import disk_calls
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests, block_length
from ckptstore_tiers.posix_errors import translated
from ckptstore_tiers.scratch import ScratchPool
from ckptstore_tiers.sources import ALIGNMENT_BYTES, is_aligned

OPEN = declare("posix.open.open")
READ = declare("posix.read.preadv")


class PosixReader:
    """An open object. `fileno()` is a plain read-only descriptor; O_DIRECT reads go through a second one."""

    def __init__(self, key: str, name: str, *, dir_fd: int, tier: str, direct: bool) -> None:
        """Raises OSError if the file cannot be opened, NotFound if what is there is no plain file."""
        self._key = key
        self._tier = tier
        self._direct_fd = -1
        self._fd = disk_calls.open_file(OPEN, name, os.O_RDONLY, dir_fd=dir_fd)
        try:
            found = os.fstat(self._fd)
            if not stat.S_ISREG(found.st_mode):
                raise NotFound("what is there is no plain file", operation="open", subject=key, tier=tier)
            self.size_bytes = found.st_size
            self.modified_s = found.st_mtime
            if direct and self.size_bytes >= BLOCK_BYTES:
                self._open_direct(name, dir_fd, found)
        except BaseException:
            self.close()
            raise

    def _open_direct(self, name: str, dir_fd: int, plain: os.stat_result) -> None:
        """A second descriptor of the same file; none if it is refused, or if the name means another file by now."""
        with suppress(OSError):
            self._direct_fd = disk_calls.open_file(OPEN, name, os.O_RDONLY | os.O_DIRECT, dir_fd=dir_fd)
            if not os.path.samestat(os.fstat(self._direct_fd), plain):
                os.close(self._direct_fd)
                self._direct_fd = -1

    def read_into(self, offset: int, buffer: memoryview) -> None:
        view = memoryview(buffer).cast("B")
        if offset < 0:
            raise InvalidInput(f"there is no offset {offset}", operation="read", subject=self._key, tier=self._tier)
        with translated("read", self._key, self._tier):
            filled = 0
            if self._direct_fd >= 0 and offset % ALIGNMENT_BYTES == 0 and is_aligned(view):
                whole_bytes = len(view) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
                filled = self._fill(self._direct_fd, view[:whole_bytes], offset)
                filled = filled // ALIGNMENT_BYTES * ALIGNMENT_BYTES
            filled += self._fill(self._fd, view[filled:], offset + filled)
        if filled < len(view):
            raise ChecksumMismatch(
                f"the file ends at byte {offset + filled}; bytes {offset} to {offset + len(view)} were asked for",
                operation="read",
                subject=self._key,
                tier=self._tier,
            )

    def _fill(self, fd: int, view: memoryview, offset: int) -> int:
        """Read until `view` is full or the file ends; how many bytes there are. A refused O_DIRECT read gives none."""
        filled = 0
        while filled < len(view):
            try:
                found = disk_calls.preadv(READ, fd, view[filled:], offset + filled)
            except OSError as error:
                if fd == self._direct_fd and error.errno == errno.EINVAL:
                    return filled
                raise
            if found == 0:
                break
            filled += found
        return filled

    def forget_cached(self) -> None:
        """Have the next reads come from the device or the server, where they do not use O_DIRECT anyway."""
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def fileno(self) -> int | None:
        return self._fd

    def close(self) -> None:
        for fd in (self._fd, self._direct_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct_fd = -1


def check_content(reader: PosixReader, digests: BlockDigests, scratch: ScratchPool, *, operation: str, key: str, tier: str) -> None:
    """Read an open file past the caches and compare it with `digests`; ChecksumMismatch if it is anything else."""
    if reader.size_bytes != digests.size_bytes:
        raise ChecksumMismatch(
            f"the stored file has {reader.size_bytes} bytes, not {digests.size_bytes}", operation=operation, subject=key, tier=tier
        )
    reader.forget_cached()
    with scratch.borrow() as buffer:
        for index in range(digests.count):
            view = buffer[: block_length(index, digests.size_bytes)]
            reader.read_into(index * BLOCK_BYTES, view)
            digests.check(index, view, operation=operation, subject=key, tier=tier)
