"""Where the bytes of a put come from: host memory, a plain file, or an object in another tier.

Each class implements `BlockSource`. All of them may be asked for several blocks at once from different threads, one
scratch buffer per thread. None of them hashes or caches: the tier that reads them does, through `DigestedBlocks`. A
source keeps what it was given (view, descriptor, reader) in use until the put returns, and closes nothing that it did
not open itself.
"""

from __future__ import annotations

import errno
import os

import numpy as np

from ckptstore.errors import ChecksumMismatch, InvalidInput, TierUnavailable
from ckptstore_tiers.checksums import BLOCK_BYTES, block_count, block_length
from ckptstore_tiers.interface import ObjectReader

#: O_DIRECT needs offsets, lengths and addresses that are multiples of the logical block size; a page covers all.
ALIGNMENT_BYTES = 4096


def address_of(view: memoryview) -> int:
    """Where the bytes of a contiguous view lie in memory; works for read-only views too."""
    return int(np.frombuffer(view, np.uint8).ctypes.data) if len(view) else 0


def is_aligned(view: memoryview) -> bool:
    """Whether O_DIRECT may transfer from or into `view` as far as its address is concerned."""
    return address_of(view) % ALIGNMENT_BYTES == 0


def _check_index(index: int, size_bytes: int) -> None:
    if not 0 <= index < block_count(size_bytes):
        raise InvalidInput(f"there is no block {index} in {size_bytes} bytes", operation="read source")


class MemorySource:
    """Bytes in memory. Blocks are views of that memory, no copies; `stable=False` if somebody may still write there."""

    def __init__(self, data: bytes | bytearray | memoryview, *, stable: bool = True) -> None:
        self._view = memoryview(data).cast("B")
        self._stable = stable

    @property
    def size_bytes(self) -> int:
        return len(self._view)

    @property
    def stable(self) -> bool:
        return self._stable

    def block(self, index: int, scratch: memoryview) -> memoryview:
        _check_index(index, self.size_bytes)
        start = index * BLOCK_BYTES
        return self._view[start : start + block_length(index, self.size_bytes)]


class FileSource:
    """The first `size_bytes` of an open file, read by position; the descriptor stays the caller's.

    A second descriptor with O_DIRECT is opened where the file system has it, so that reading a large file once does not
    push everything else out of the page cache; not with `direct=False`, for a file that was written just now and is in the
    cache anyway. A file that is shorter than promised raises ChecksumMismatch.
    """

    def __init__(self, fd: int, size_bytes: int, *, subject: str = "file", direct: bool = True) -> None:
        self._fd = fd
        self._size_bytes = size_bytes
        self._subject = subject
        self._direct_fd = self._open_direct() if direct and size_bytes >= BLOCK_BYTES else -1

    def _open_direct(self) -> int:
        try:
            return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            return (
                -1
            )  # tmpfs, some FUSE mounts, a file that this process may not open again: buffered reads do

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def stable(self) -> bool:
        """True whoever writes into the file: a block is read once into scratch, and scratch is ours alone."""
        return True

    def block(self, index: int, scratch: memoryview) -> memoryview:
        _check_index(index, self._size_bytes)
        view = scratch[: block_length(index, self._size_bytes)]
        whole = len(view) % ALIGNMENT_BYTES == 0 and is_aligned(view)
        fd = self._direct_fd if whole and self._direct_fd >= 0 else self._fd
        self._fill(fd, view, index * BLOCK_BYTES)
        return view

    def _fill(self, fd: int, view: memoryview, offset: int) -> None:
        filled = 0
        while filled < len(view):
            try:
                count = os.preadv(fd, [view[filled:]], offset + filled)
            except OSError as error:
                if error.errno == errno.EINVAL and fd == self._direct_fd:
                    fd = self._fd  # this mount opens with O_DIRECT and then refuses to read so
                    continue
                raise TierUnavailable(
                    os.strerror(error.errno or 0), operation="read", subject=self._subject
                ) from error
            if count == 0:
                raise ChecksumMismatch(
                    f"the file ends at byte {offset + filled} of {self._size_bytes}",
                    operation="read",
                    subject=self._subject,
                )
            filled += count

    def close(self) -> None:
        """Give back the descriptor that this source opened; the caller's own stays open."""
        if self._direct_fd >= 0:
            os.close(self._direct_fd)
            self._direct_fd = -1


class ReaderSource:
    """An object that is open in another tier: what drain and recall read from. The reader stays the caller's."""

    def __init__(self, reader: ObjectReader) -> None:
        self._reader = reader

    @property
    def size_bytes(self) -> int:
        return self._reader.size_bytes

    @property
    def stable(self) -> bool:
        return True

    def block(self, index: int, scratch: memoryview) -> memoryview:
        _check_index(index, self.size_bytes)
        view = scratch[: block_length(index, self.size_bytes)]
        self._reader.read_into(index * BLOCK_BYTES, view)
        return view
