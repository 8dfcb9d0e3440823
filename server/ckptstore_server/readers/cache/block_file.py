"""One version's bytes on this node's disk: a sparse file of 4 MiB blocks, and the map that says which of them are there.

    <folder>/<version>.data   the file itself, of its full length from the beginning; whole, it is an ordinary file
    <folder>/<version>.map    see `block_map`; data without a map is nothing, and goes at the next start

Invariant: a block that was readable is never written again, and a file that was lent is never truncated or punched: it goes as a whole, by
unlink, and who has it open reads on. Each block is in one of four states, of which only READABLE may be shown to anybody:

    ABSENT     → READABLE   `store`: the bytes, then the map's entry
    CLAIMED    → READABLE   `confirm`: an entry of an earlier boot, whose block was read and compared
    CLAIMED    → ABSENT     `confirm`: it differs, and was never shown in this boot
    READABLE   → (damaged)  `is_good` says so; if the file was lent, a new file takes its place (see `copy`)

Survives SIGKILL at any moment, and a power cut with whatever the disk kept (see `block_map`). Threads: `store` and `confirm` of one block
must not overlap (`copy` sees to that: one flight a block); everything else may.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ckptstore.errors import ChecksumMismatch
from ckptstore.failpoints import declare, failpoint
from ckptstore_server.readers.cache.block_map import BlockMap
from ckptstore_server.readers.origin import FileVersion
from ckptstore_tiers.checksums import BLOCK_BYTES, block_count, block_length, digest

ABSENT, CLAIMED, READABLE, SPOILT = 0, 1, 2, 3
_NOT_READABLE = re.compile(rb"[^\x02]")
BEFORE_DATA = declare("cache.block.before_data")
BEFORE_MAP = declare("cache.block.before_map")
BEFORE_DATA_UNLINK = declare("cache.file.before_data_unlink")
READ = declare("cache.block.read")
SYNC = declare("cache.file.fdatasync")


class BlockFile:
    """An open cached file. Raises OSError as the kernel does; `copy` decides what that means."""

    def __init__(self, folder: Path, block_map: BlockMap, fd: int) -> None:
        self.folder = folder
        self.file = block_map.file
        self.copy_id = block_map.copy_id
        self._map = block_map
        self._fd = fd
        # Closed when the last who uses it has let go: a number that was closed too early would soon mean another file.
        weakref.finalize(self, _close, fd, block_map)
        self._digests: list[bytes | None] = list(block_map.entries())
        state = READABLE if block_map.is_believed else CLAIMED
        self.states = bytearray(ABSENT if found is None else state for found in self._digests)
        self._is_lent = self._was_lent = block_map.is_lent

    @classmethod
    def create(cls, folder: Path, file: FileVersion) -> BlockFile:
        """A new file without blocks; one of this version that was there before has its name no longer."""
        remove(folder, file.version)
        data = data_place(folder, file.version)
        fd = os.open(data, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(fd, file.size_bytes)
            block_map = BlockMap.create(map_place(folder, file.version), file)
        except BaseException:
            os.close(fd)
            remove(folder, file.version)
            raise
        return cls(folder, block_map, fd)

    @classmethod
    def open(cls, folder: Path, version: str) -> BlockFile:
        """ChecksumMismatch or FileNotFoundError if what is there is of no use."""
        block_map = BlockMap.open(map_place(folder, version))
        fd = -1
        try:
            fd = os.open(data_place(folder, version), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            if os.fstat(fd).st_size != block_map.file.size_bytes:
                raise ChecksumMismatch("its data has another length", operation="open cached copy", subject=block_map.file.path)
        except BaseException:
            _close(fd, block_map)
            raise
        return cls(folder, block_map, fd)

    # --- blocks ------------------------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        return block_count(self.file.size_bytes)

    @property
    def kept_bytes(self) -> int:
        absent = BLOCK_BYTES * self.states.count(ABSENT)
        short = bool(self.states) and self.states[-1] == ABSENT
        return self.file.size_bytes - absent + short * (BLOCK_BYTES * self.count - self.file.size_bytes)

    @property
    def is_complete(self) -> bool:
        """Whether every block is readable."""
        return self.states.count(READABLE) == len(self.states)

    @property
    def readable_bytes(self) -> int:
        whole = BLOCK_BYTES * self.states.count(READABLE)
        short = bool(self.states) and self.states[-1] == READABLE
        return whole - short * (BLOCK_BYTES * self.count - self.file.size_bytes)

    def missing_from(self, first: int) -> Iterator[int]:
        """The blocks from `first` on that are not readable."""
        return (found.start() for found in _NOT_READABLE.finditer(self.states, first))

    def unsettled(self, earlier: BlockFile | None) -> Iterator[int]:
        """Blocks that are kept, here or in an earlier file, and must be looked at before this one can be whole."""
        for index in self.missing_from(0):
            if self.states[index] == CLAIMED or (earlier is not None and earlier.states[index] != ABSENT):
                yield index

    def gives(self, index: int, scratch: memoryview) -> bool:
        """Whether a readable block is good, and in `scratch` now."""
        try:
            return self.states[index] == READABLE and self.is_good(index, scratch)
        except OSError:
            return False

    def store(self, index: int, view: memoryview, found: bytes) -> None:
        """Keep a block whose digest is `found`: readable at return."""
        failpoint(BEFORE_DATA)
        _write_all(self._fd, view, index * BLOCK_BYTES)
        failpoint(BEFORE_MAP)
        self._map.add(index, found)
        self._digests[index] = found
        self.states[index] = READABLE

    def confirm(self, index: int, scratch: memoryview, expected: bytes | None) -> bool:
        """Compare a block of an earlier boot with its entry (and with `expected`); it is readable now, or not there."""
        if self.is_good(index, scratch) and expected in (None, self._digests[index]):
            self.states[index] = READABLE
            if CLAIMED not in self.states:
                self._map.believe()
            return True
        self._forget(index, shown=self._was_lent)  # a former daemon of this boot may have shown it; this one has not
        return False

    def forget(self, index: int) -> None:
        """A block that was readable is damaged."""
        self._forget(index, shown=self._is_lent)

    def _forget(self, index: int, *, shown: bool) -> None:
        if shown:
            self.states[index] = SPOILT
            return
        self.states[index] = ABSENT
        self._digests[index] = None
        self._map.remove(index)

    def is_good(self, index: int, scratch: memoryview) -> bool:
        """Read a block into `scratch`, and say whether it is what entered. A block that the disk does not give is not."""
        view = scratch[: block_length(index, self.file.size_bytes)]
        failpoint(READ)
        filled = 0
        while filled < len(view):
            found = os.preadv(self._fd, [view[filled:]], index * BLOCK_BYTES + filled)
            if found == 0:
                return False
            filled += found
        return digest(view) == self._digests[index]

    def sync(self) -> None:
        """Have the bytes on the disk; raises OSError if the disk could not take them."""
        failpoint(SYNC)
        os.fdatasync(self._fd)

    # --- lending, and its end ----------------------------------------------------------------------------------------------------

    @property
    def is_lent(self) -> bool:
        return self._is_lent

    def descriptor(self) -> int:
        """A read-only descriptor for somebody else; from now on this file is never changed where it was readable."""
        if not self._is_lent:
            self._map.note_lent()
            self._is_lent = True
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)


def data_place(folder: Path, version: str) -> Path:
    return folder / f"{version}.data"


def map_place(folder: Path, version: str) -> Path:
    return folder / f"{version}.map"


def note_use(folder: Path, version: str, used_s: float) -> None:
    """A map's time of change says when the copy was last used."""
    with suppress(FileNotFoundError):
        os.utime(map_place(folder, version), (used_s, used_s))


def remove(folder: Path, version: str) -> None:
    """Take both files away, the map first: data alone is nothing. What is not there is no error."""
    map_place(folder, version).unlink(missing_ok=True)
    map_place(folder, version).with_suffix(".new").unlink(missing_ok=True)
    failpoint(BEFORE_DATA_UNLINK)
    data_place(folder, version).unlink(missing_ok=True)


def _close(fd: int, block_map: BlockMap) -> None:
    block_map.close()
    if fd >= 0:
        os.close(fd)


def _write_all(fd: int, view: memoryview, offset: int) -> None:
    written = 0
    while written < len(view):
        written += os.pwrite(fd, view[written:], offset + written)
