"""What do the bytes on /dev/fuse mean? The kernel's structs, opcodes and flags that a read-only file system needs, and no others.

Pure: packs and unpacks, opens nothing. The source is the kernel's include/uapi/linux/fuse.h, protocol 7.40 (passthrough) to 7.45; a kernel
that speaks an older one is served without what it lacks. All structs are in the machine's own byte order, padded to eight bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

MAJOR, MINOR = 7, 45
#: The oldest kernel that is served: 7.28 has max_pages (requests of 1 MiB) and cached folders; Linux 4.20.
OLDEST_MINOR = 28
ROOT_ID = 1
#: The largest READ. The kernel's own limit is 256 pages unless an operator raised it.
MAX_READ_BYTES = 1 << 20
#: Read-ahead requests that the kernel has under way at once (its default is 12), and from how many on it holds further ones back.
MAX_BACKGROUND, CONGESTED = 64, 48
#: What a buffer for requests must hold: 8 KiB is the kernel's minimum; nothing that we accept is longer than a page.
REQUEST_BYTES = 1 << 16
#: Bit in `unique` of a request that the kernel sends again after NOTIFY_RESEND; the reply carries it as it came.
UNIQUE_RESEND = 1 << 63


class Opcode(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    GETXATTR = 22
    LISTXATTR = 23
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    ACCESS = 34
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44
    LSEEK = 46


#: Every opcode that would change something: SETATTR, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, WRITE, SETXATTR, REMOVEXATTR,
#: CREATE, FALLOCATE, RENAME2, COPY_FILE_RANGE, TMPFILE. A read-only mount lets none through; should one come, it is refused the same way.
WRITING_OPCODES = frozenset({4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 47, 51})


class InitFlag(IntFlag):
    """Of INIT; those from bit 32 on travel in `flags2`."""

    ASYNC_READ = 1 << 0
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    EXPLICIT_INVAL_DATA = 1 << 25
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39
    REQUEST_TIMEOUT = 1 << 42


class OpenFlag(IntFlag):
    """Of the reply to OPEN and OPENDIR."""

    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3
    NOFLUSH = 1 << 5
    PASSTHROUGH = 1 << 7


class Notify(IntEnum):
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    RESEND = 7


#: What we use where the kernel has it. CACHE_SYMLINKS is not among it: `@latest` changes.
WANTED = (
    InitFlag.ASYNC_READ
    | InitFlag.DO_READDIRPLUS
    | InitFlag.READDIRPLUS_AUTO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.ABORT_ERROR
    | InitFlag.MAX_PAGES
    | InitFlag.EXPLICIT_INVAL_DATA
    | InitFlag.INIT_EXT
    | InitFlag.HAS_RESEND
)

_IN_HEADER = struct.Struct("=IIQQIIIHxx")
_OUT_HEADER = struct.Struct("=IiQ")
_INIT_IN = struct.Struct("=IIIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHIIH22x")
_ATTR = "QQQQQQIIIIIIIIII"
_ENTRY = struct.Struct("=QQQQII" + _ATTR)
_ATTR_OUT = struct.Struct("=QI4x" + _ATTR)
_OPEN_OUT = struct.Struct("=QIi")
_DIRENT = struct.Struct("=QQII")
_STATFS = struct.Struct("=QQQQQIII28x")
_SIZE = struct.Struct("=I4x")

OPEN_IN = struct.Struct("=II")  # flags, open_flags
READ_IN = struct.Struct("=QQII")  # fh, offset, size, read_flags; the lock owner and the file's flags behind it are not looked at
RELEASE_IN = struct.Struct("=Q")  # fh; the rest is about locks
FORGET_IN = struct.Struct("=Q")  # lookups
BATCH_FORGET_IN = struct.Struct("=I4x")  # count
FORGET_ONE = struct.Struct("=QQ")  # node, lookups
XATTR_IN = struct.Struct("=I4x")  # size; the name follows
LSEEK_IN = struct.Struct("=QQI4x")  # fh, offset, whence
LSEEK_OUT = struct.Struct("=Q")
INVAL_ENTRY = struct.Struct("=QII")  # parent, length of the name, flags
INVAL_INODE = struct.Struct("=Qqq")  # node, offset, length

HEADER_BYTES = _IN_HEADER.size
ENTRY_BYTES = _ENTRY.size


@dataclass(frozen=True, slots=True)
class Request:
    opcode: int
    unique: int
    node: int
    pid: int
    body: memoryview

    @property
    def name(self) -> bytes:
        """The body of LOOKUP."""
        return bytes(self.body[: len(self.body) - 1])


def read_request(data: memoryview) -> Request:
    """`data` is one read of the device; the body stays a view into it."""
    length, opcode, unique, node, _uid, _gid, pid, _extensions = _IN_HEADER.unpack_from(data)
    return Request(opcode, unique, node, pid, data[HEADER_BYTES:length])


def reply_header(unique: int, body_bytes: int, error: int = 0) -> bytes:
    """`error`: an errno, positive."""
    return _OUT_HEADER.pack(_OUT_HEADER.size + body_bytes, -error, unique)


def notice(code: Notify, body: bytes = b"") -> bytes:
    """A message that answers nothing; its header carries the code where a reply has its error."""
    return _OUT_HEADER.pack(_OUT_HEADER.size + len(body), code, 0) + body


# --- INIT -------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agreed:
    """What kernel and mount agreed on at INIT."""

    minor: int
    passthrough: bool


def agree(body: memoryview, *, passthrough: bool, request_timeout_s: int) -> tuple[Agreed, bytes] | None:
    """What the kernel offers and we want, and the reply that says so; None if it is too old to be served.

    max_stack_depth=2 lets files of an overlayfs be passed through, which is what a container's root is.
    """
    major, minor, read_ahead_bytes, flags, flags2 = (*_INIT_IN.unpack_from(bytes(body).ljust(_INIT_IN.size, b"\0")),)
    if major != MAJOR or minor < OLDEST_MINOR:
        return None
    offered = flags | flags2 << 32 if flags & InitFlag.INIT_EXT else flags
    wanted = WANTED | (InitFlag.PASSTHROUGH if passthrough else 0) | (InitFlag.REQUEST_TIMEOUT if request_timeout_s else 0)
    used = offered & wanted
    stack_depth = 2 if used & InitFlag.PASSTHROUGH else 0
    timeout_s = request_timeout_s if used & InitFlag.REQUEST_TIMEOUT else 0
    read_ahead_bytes = max(read_ahead_bytes, MAX_READ_BYTES)
    minor, max_pages = min(minor, MINOR), MAX_READ_BYTES // 4096
    head = (MAJOR, minor, read_ahead_bytes, used & 0xFFFFFFFF)
    reply = _INIT_OUT.pack(*head, MAX_BACKGROUND, CONGESTED, 4096, 1, max_pages, 0, used >> 32, stack_depth, timeout_s)
    return Agreed(minor, bool(used & InitFlag.PASSTHROUGH)), reply


# --- replies ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attributes:
    """What `stat` shows."""

    ino: int
    size_bytes: int
    modified_ns: int
    mode: int
    links: int
    uid: int
    gid: int

    def fields(self) -> tuple[int, ...]:
        seconds, rest_ns = divmod(max(0, self.modified_ns), 1_000_000_000)
        blocks = -(-self.size_bytes // 512)
        times = (seconds, seconds, seconds, rest_ns, rest_ns, rest_ns)
        return (self.ino, self.size_bytes, blocks, *times, self.mode, self.links, self.uid, self.gid, 0, 4096, 0)


def _whole_and_rest(seconds: float) -> tuple[int, int]:
    return int(seconds), int(seconds % 1 * 1_000_000_000)


def entry(node: int, attributes: Attributes, *, name_valid_s: float, attributes_valid_s: float) -> bytes:
    """The reply to LOOKUP. Node ids are never used twice, so their generation stays 0."""
    name_s, name_ns = _whole_and_rest(name_valid_s)
    attributes_s, attributes_ns = _whole_and_rest(attributes_valid_s)
    return _ENTRY.pack(node, 0, name_s, attributes_s, name_ns, attributes_ns, *attributes.fields())


def no_entry(*, name_valid_s: float) -> bytes:
    """ "There is no such name, and you may remember that", for as long as the name is valid."""
    name_s, name_ns = _whole_and_rest(name_valid_s)
    return _ENTRY.pack(0, 0, name_s, 0, name_ns, 0, *(0,) * 16)


def attributes_reply(attributes: Attributes, *, valid_s: float) -> bytes:
    return _ATTR_OUT.pack(*_whole_and_rest(valid_s), *attributes.fields())


def open_reply(handle: int, flags: int, backing_id: int = 0) -> bytes:
    return _OPEN_OUT.pack(handle, flags, backing_id)


def folder_entry(ino: int, next_offset: int, name: bytes, mode: int) -> bytes:
    """One line of READDIR; `next_offset` is where reading goes on after it."""
    packed = _DIRENT.pack(ino, next_offset, len(name), mode >> 12) + name
    return packed + bytes(-len(packed) % 8)


def statfs_reply(*, blocks: int, free_blocks: int, files: int, block_bytes: int, name_bytes: int) -> bytes:
    return _STATFS.pack(blocks, free_blocks, free_blocks, files, 0, block_bytes, name_bytes, block_bytes)


def xattr_size(size_bytes: int) -> bytes:
    return _SIZE.pack(size_bytes)
