"""One piece of host memory that can be lent: a memfd that nobody can resize, and the daemon's own mapping of it.

A `Slot` is the memory; a `Segment` is one use of it, told apart by its generation, so that a late call about an earlier use is
recognised. The memfd is sealed against shrinking, growing and further seals before anybody else sees it: a client that truncates its
segment gets EPERM, and the daemon never SIGBUS. Pages that the daemon pre-faults are charged to the daemon's cgroup, those that a
client touches first to the client's.

The pool's lock guards a slot's fields; `close` and `prefault` take time and run outside it. Closing punches the memory out before
the descriptor goes, so that it comes back even while a client still has it mapped. Nothing here is durable.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable
from ctypes import CDLL, c_int, c_long
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from types import TracebackType

import numpy as np

from ckptstore.errors import ChecksumMismatch, NotFound, TierFull
from ckptstore.paths import new_id
from ckptstore_tiers import numa
from ckptstore_tiers.prefault import CHUNK_BYTES, collapse, prefault
from ckptstore_tiers.shared_mapping import HUGE_PAGE_BYTES, map_shared

_F_ADD_SEALS = 1033
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1, 2, 4
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2
_SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_FREE_HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")


def round_up(size_bytes: int) -> int:
    """The smallest capacity that holds so many bytes: whole huge pages."""
    return -(-max(size_bytes, 1) // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES


class SegmentState(Enum):
    FREE = "free"  # nothing in it; waits for its owner's next save
    LENT = "lent"  # the client writes into it
    HELD = "held"  # handed over: the daemon reads from it
    REPLICA = "replica"  # holds a whole object until its slot is needed


class Slot:
    """The memory. Raises TierFull when the kernel refuses to make it."""

    def __init__(self, owner: str, capacity_bytes: int, *, huge_pages: bool, pid: int | None = None) -> None:
        """`pid`: the process that will write into it, near which its pages are made."""
        self.segment_id = new_id()
        self.owner = owner
        self.owner_gone = False
        self.capacity_bytes = capacity_bytes
        self.generation = 0
        self.state = SegmentState.FREE
        self.object_id: str | None = None
        self.size_bytes = 0
        self.pins = 0
        self.doomed = False  # close it as soon as nobody reads from it
        self.used_at_s = 0.0
        self.kept_at_s = 0.0  # when it became a replica: the age of what is in it, whoever reads it meanwhile
        self.prefaulted = threading.Event()  # set when pre-faulting has ended, whether it got all pages or not
        self._fd_lock = threading.Lock()  # `fd` is -1 once the slot is closed
        self._prefault_lock = threading.Lock()  # closing waits for the chunk that is being pre-faulted
        self._huge_pages = huge_pages
        self.fd, memory = _make_memory(capacity_bytes, huge_pages)
        numa.settle(memory, pid)
        self._memory: memoryview | None = memory

    @property
    def idle(self) -> bool:
        """Whether the slot may be reused or closed now."""
        return self.state in (SegmentState.FREE, SegmentState.REPLICA) and self.pins == 0

    @property
    def view(self) -> memoryview:
        with self._fd_lock:
            if self._memory is None:
                raise self._closed("read")
            return self._memory

    def duplicate(self) -> int:
        with self._fd_lock:
            if self.fd < 0:
                raise self._closed("lend")
            return fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, 0)

    def read_only_fd(self) -> int:
        """A second open file description: its holder cannot write, nor map the memory writable."""
        with self._fd_lock:
            if self.fd < 0:
                raise self._closed("open")
            return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def unbacked_bytes(self) -> int:
        """Bytes that were promised and have no page yet."""
        with self._fd_lock:
            return 0 if self.fd < 0 else max(0, self.capacity_bytes - os.fstat(self.fd).st_blocks * 512)

    def prefault(self) -> bool:
        """Make all pages present; False when memory ran out or the slot was closed."""
        try:
            return self._prefault_chunks()
        finally:
            self.prefaulted.set()

    def _prefault_chunks(self) -> bool:
        for start in range(0, self.capacity_bytes, CHUNK_BYTES):
            with self._prefault_lock:
                if self._memory is None or not prefault(self._memory[start : start + CHUNK_BYTES], huge_pages=self._huge_pages):
                    return False
        return True

    def close(self) -> None:
        """Give the memory back. Views that somebody still holds stay valid, and read zeros."""
        with self._prefault_lock:
            with self._fd_lock:
                fd, self.fd = self.fd, -1
                self._memory = None  # a reader may still have a view: the mapping goes with the last of them
            if fd < 0:
                return
            _punch(fd, self.capacity_bytes)
            os.close(fd)

    def _closed(self, operation: str) -> NotFound:
        return NotFound("the segment was given back", operation=operation, subject=self.segment_id, tier="memory")


@dataclass(frozen=True)
class Segment:
    """One use of a slot. What it gives out is valid until the pool takes the slot back."""

    segment_id: str
    generation: int
    capacity_bytes: int
    owner: str
    slot: Slot = field(repr=False, compare=False)

    @classmethod
    def of(cls, slot: Slot) -> Segment:
        return cls(slot.segment_id, slot.generation, slot.capacity_bytes, slot.owner, slot)

    @property
    def state(self) -> SegmentState:
        """FREE once the slot has gone on to its next use."""
        return self.slot.state if self.slot.generation == self.generation else SegmentState.FREE

    @property
    def object_id(self) -> str | None:
        return self.slot.object_id if self.slot.generation == self.generation else None

    @property
    def size_bytes(self) -> int:
        """Bytes of the object that it holds as a replica."""
        return self.slot.size_bytes if self.slot.generation == self.generation else 0

    @property
    def fd(self) -> int:
        """The daemon's own descriptor; it may be closed by another thread, so what is sent elsewhere is a `duplicate`."""
        return self.slot.fd

    @property
    def view(self) -> memoryview:
        """The whole slot, writable, in the daemon's mapping. NotFound once it was given back."""
        return self.slot.view

    def duplicate(self) -> int:
        """A writable descriptor for the owner; the caller closes it."""
        return self.slot.duplicate()

    def read_only_fd(self) -> int:
        """A read-only descriptor for a reader; the caller closes it."""
        return self.slot.read_only_fd()

    def wait_prefaulted(self, timeout_s: float) -> bool:
        """Whether pre-faulting ended within that time."""
        return self.slot.prefaulted.wait(timeout_s)


class PinnedReplica:
    """An `ObjectReader` over a segment, and a context manager: the slot is not reused while this is open."""

    def __init__(self, segment: Segment, object_id: str, unpin: Callable[[Slot], None]) -> None:
        self.segment = segment
        self.object_id = object_id
        self._unpin = unpin
        self._size_bytes = segment.size_bytes
        self._view = segment.view[: self._size_bytes].toreadonly()
        self._lock = threading.Lock()
        self._open = True

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def view(self) -> memoryview:
        """The object's bytes in place, read-only; valid until this is closed."""
        return self._view

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if not 0 <= offset <= offset + len(buffer) <= self._size_bytes:
            raise ChecksumMismatch(
                f"bytes {offset} to {offset + len(buffer)} were asked for, the object has {self._size_bytes}",
                operation="read",
                subject=self.object_id,
                tier="memory",
            )
        if len(buffer):
            # numpy copies outside the interpreter lock; assigning to a slice of a memoryview would stop every other thread.
            np.copyto(np.frombuffer(buffer, np.uint8), np.frombuffer(self._view[offset : offset + len(buffer)], np.uint8))

    def fileno(self) -> int | None:
        """None: the segment's file is longer than the object. Who lends it says the size with it (`segment.read_only_fd`)."""
        return None

    def close(self) -> None:
        with self._lock:
            if not self._open:
                return
            self._open = False
            self._view = memoryview(b"")
        self._unpin(self.segment.slot)

    def __enter__(self) -> PinnedReplica:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _make_memory(capacity_bytes: int, huge_pages: bool) -> tuple[int, memoryview]:
    if huge_pages and _reserved_huge_pages_bytes() >= capacity_bytes:
        try:
            return _map(os.MFD_HUGETLB, capacity_bytes, huge_pages)
        except OSError as error:
            if error.errno not in (errno.ENOMEM, errno.EINVAL, errno.EPERM, errno.ENOENT):
                raise _refused(error, capacity_bytes) from error
            # Somebody took the reserved pages first: ordinary memory does.
    try:
        return _map(0, capacity_bytes, huge_pages)
    except OSError as error:
        raise _refused(error, capacity_bytes) from error


def _map(flags: int, capacity_bytes: int, huge_pages: bool) -> tuple[int, memoryview]:
    fd = os.memfd_create("ckptstore-segment", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC | flags)
    try:
        os.ftruncate(fd, capacity_bytes)
        fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_SEAL)
        # DONTDUMP: a crash of the daemon should not write hundreds of gigabytes of core.
        return fd, map_shared(fd, capacity_bytes, advice=(mmap.MADV_DONTDUMP, *((mmap.MADV_HUGEPAGE,) if huge_pages else ())))
    except OSError:
        os.close(fd)
        raise


def _refused(error: OSError, capacity_bytes: int) -> TierFull:
    return TierFull(
        os.strerror(error.errno or 0),
        operation="make a segment",
        subject=f"{capacity_bytes} bytes",
        tier="memory",
        hint="raise the limits on open files (ulimit -n) and address space (ulimit -v) of the daemon",
    )


def _reserved_huge_pages_bytes() -> int:
    try:
        return int(_FREE_HUGE_PAGES.read_text("ascii")) * HUGE_PAGE_BYTES
    except (OSError, ValueError):
        return 0


@cache
def _fallocate() -> Callable[[int, int, int, int], int]:
    """fallocate(2) with its mode: the os module has only posix_fallocate, which cannot punch."""
    function = CDLL(None, use_errno=True).fallocate
    function.argtypes = [c_int, c_int, c_long, c_long]
    function.restype = c_int
    return function


def _punch(fd: int, length_bytes: int) -> None:
    """Without it (an old kernel) the memory comes back too, but only when the last client has unmapped it: no error."""
    _fallocate()(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, 0, length_bytes)


def huge_pages_offered() -> str:
    """What the kernel offers to segments, for `status`, with what to do if it offers none."""
    if _reserved_huge_pages_bytes():
        return f"{_reserved_huge_pages_bytes()} bytes are reserved"
    if _collapses():
        return "on request (MADV_COLLAPSE)"
    try:
        chosen = _SHMEM_ENABLED.read_text("ascii").partition("[")[2].partition("]")[0]
    except OSError:
        return "none: this kernel has no transparent huge pages for shared memory"
    if chosen in ("never", "deny", ""):
        return f"none: write 'advise' to {_SHMEM_ENABLED}, and segments are ready ten times sooner"
    return f"transparent ({chosen})"


@cache
def _collapses() -> bool:
    """Tried once, on one huge page."""
    fd, memory = _make_memory(HUGE_PAGE_BYTES, False)
    os.close(fd)
    return collapse(memory)
