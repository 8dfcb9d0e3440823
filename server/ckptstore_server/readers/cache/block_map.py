"""Which blocks of a cached file are there, and what must they be? A small file beside the data, written one entry at a time.

    0      magic, length, checksum, and as JSON the copy's id, and the file's version, path, size and origin
    16384  "believed in this boot": a boot id, or zeros
    16400  "lent in this boot": a boot id, or zeros
    20480  one entry of 32 bytes a block: its XXH3-128, and a checksum over that, its index and the version; zeros: it is not there

Invariant: an entry is written after its block, both into the page cache, so a SIGKILL between or in the middle of them leaves a block that
is not there. Nothing is fsynced here: a power cut may keep an entry and lose its block. That is what the boot id is for: entries of another
boot are claims, and count when the block was read and compared. An entry that is torn fails its own checksum, and is none; entries do not
straddle a sector.

Blocking, and one writer at a time: `block_file` sees to that.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import xxhash

from ckptstore.errors import ChecksumMismatch, InvalidInput
from ckptstore.failpoints import declare, failpoint
from ckptstore.paths import new_id
from ckptstore_server.readers.origin import FileVersion
from ckptstore_tiers.checksums import DIGEST_BYTES, block_count

MAGIC = b"ckptmap1"
_HEAD = struct.Struct("<8sI16s")
_BOOT_AT, _LENT_AT, _ENTRIES_AT = 16384, 16400, 20480
_BOOT_BYTES = 16
_ENTRY_BYTES = 32
BEFORE_NAMED = declare("cache.map.before_named")
BEFORE_ENTRY = declare("cache.map.before_entry")
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> bytes:
    """Names the time since the kernel started: what is in the page cache now was written in it."""
    return _read_boot_id(BOOT_ID_FILE)


@functools.cache
def _read_boot_id(file: Path) -> bytes:
    """No process outlives it, and every open of a copy asks."""
    return bytes.fromhex(file.read_text("ascii").strip().replace("-", ""))


class BlockMap:
    """An open map. Raises OSError as the kernel does; ChecksumMismatch for what is no map, or not all of one."""

    def __init__(self, fd: int, copy_id: str, file: FileVersion) -> None:
        self._fd = fd
        self.copy_id = copy_id
        self.file = file

    @classmethod
    def create(cls, place: Path, file: FileVersion) -> BlockMap:
        """A map without blocks, believed in this boot; it has its name when it is complete. InvalidInput: too much to describe."""
        copy_id = new_id()
        body = json.dumps({"copy_id": copy_id, "file": dataclasses.asdict(file)}, ensure_ascii=False).encode("utf-8")
        if _HEAD.size + len(body) > _BOOT_AT:
            raise InvalidInput("its description is too long", operation="cache", subject=file.path)
        head = _HEAD.pack(MAGIC, len(body), xxhash.xxh3_128_digest(body)) + body
        fresh = place.with_suffix(".new")
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, head.ljust(_BOOT_AT, b"\0") + boot_id(), 0)
            os.ftruncate(fd, _ENTRIES_AT + _ENTRY_BYTES * block_count(file.size_bytes))
            failpoint(BEFORE_NAMED)
            fresh.rename(place)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, copy_id, file)

    @classmethod
    def open(cls, place: Path) -> BlockMap:
        fd = os.open(place, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return cls(fd, *_described(fd))
        except BaseException:
            os.close(fd)
            raise

    # --- blocks ------------------------------------------------------------------------------------------------------------------

    def entries(self) -> Iterator[bytes | None]:
        """The digest of each block, or None for one that is not there."""
        count = block_count(self.file.size_bytes)
        raw = os.pread(self._fd, _ENTRY_BYTES * count, _ENTRIES_AT)
        for index in range(count):
            entry = raw[index * _ENTRY_BYTES : (index + 1) * _ENTRY_BYTES]
            yield entry[:DIGEST_BYTES] if any(entry) and entry == self._entry(index, entry[:DIGEST_BYTES]) else None

    def add(self, index: int, digest: bytes) -> None:
        failpoint(BEFORE_ENTRY)
        _write(self._fd, self._entry(index, digest), _ENTRIES_AT + index * _ENTRY_BYTES)

    def remove(self, index: int) -> None:
        _write(self._fd, bytes(_ENTRY_BYTES), _ENTRIES_AT + index * _ENTRY_BYTES)

    def _entry(self, index: int, digest: bytes) -> bytes:
        return digest + xxhash.xxh3_128_digest(digest + index.to_bytes(8, "little") + self.file.version.encode("ascii"))

    # --- boots -------------------------------------------------------------------------------------------------------------------

    @property
    def is_believed(self) -> bool:
        """Whether all entries were written, or compared with their blocks, in this boot."""
        return os.pread(self._fd, _BOOT_BYTES, _BOOT_AT) == boot_id()

    def believe(self) -> None:
        _write(self._fd, boot_id(), _BOOT_AT)

    @property
    def is_lent(self) -> bool:
        """Whether somebody who is alive may have a descriptor of the data."""
        return os.pread(self._fd, _BOOT_BYTES, _LENT_AT) == boot_id()

    def note_lent(self) -> None:
        _write(self._fd, boot_id(), _LENT_AT)

    def close(self) -> None:
        os.close(self._fd)


def doubt(place: Path) -> None:
    """Have the entries of the map at `place` compared with their blocks before they count, as after a boot. OSError."""
    fd = os.open(place, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _write(fd, bytes(_BOOT_BYTES), _BOOT_AT)
    finally:
        os.close(fd)


def describe(place: Path) -> FileVersion:
    """What the map at `place` is of, without its blocks. ChecksumMismatch, OSError."""
    fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return _described(fd)[1]
    finally:
        os.close(fd)


def _described(fd: int) -> tuple[str, FileVersion]:
    head = os.pread(fd, _BOOT_AT, 0)
    if len(head) < _BOOT_AT:
        raise _unreadable(fd, "it is cut short")
    magic, length, check = _HEAD.unpack_from(head)
    body = head[_HEAD.size : _HEAD.size + length]
    if magic != MAGIC or xxhash.xxh3_128_digest(body) != check:
        raise _unreadable(fd, "its head is no head")
    try:
        document = json.loads(body)
        copy_id, file = str(document["copy_id"]), FileVersion(**document["file"])
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(fd, f"it describes no file: {error}") from error
    if os.fstat(fd).st_size != _ENTRIES_AT + _ENTRY_BYTES * block_count(file.size_bytes):
        raise _unreadable(fd, "it has another length than its file needs")
    return copy_id, file


def _unreadable(fd: int, why: str) -> ChecksumMismatch:
    return ChecksumMismatch(why, operation="read map", subject=str(Path(f"/proc/self/fd/{fd}").readlink()))


def _write(fd: int, data: bytes, offset: int) -> None:
    written = os.pwrite(fd, data, offset)
    if written != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a short write: the next one would have said so
