"""How does this process reach the bytes of one replica? Through memory that the daemon lends, a file's descriptor, or the daemon's stream.

A segment is mapped, and copied from with `memmove`: a `preadv` of the same bytes takes half as long again. The mapping is kept from
load to load, by the inode of its memfd, which nobody else can have while the mapping lives; its pages are mapped ahead, block by
block, by the threads that are about to copy them. Its bytes may change at any moment, since the slot may go to the next save: the
reader verifies what it has copied. A file is read past the page cache (O_DIRECT), so that reading a checkpoint once does not push
everything else out of it; where several processes of a node read the same file, they `use_cache`, and the disk is read once. A file
can be mapped, too: what the kernel then serves nobody verifies here.

Replicas are read by several threads at once, which all let others run meanwhile. Nothing here checks a digest.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from ckptstore.errors import ChecksumMismatch, TierUnavailable
from ckptstore_client.api import Api
from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.prefault import populate_read
from ckptstore_tiers.shared_mapping import map_shared
from ckptstore_tiers.sources import ALIGNMENT_BYTES, address_of

MEMORY = "memory"
#: What a reader calls the way by which only the blocks that it reads are fetched; no tier has such a name.
PART = "parts of it"
#: preadv takes at most this many pieces (IOV_MAX).
_MAX_PIECES = 1024
#: More segments than one client reads from in turn; a mapping costs address space and nothing else.
_KEPT_MAPPINGS = 16


class Replica(Protocol):
    @property
    def tier(self) -> str: ...

    @property
    def bounces(self) -> bool:
        """Whether a block is read in one piece and copied out when it was verified, rather than scattered to where it belongs at once."""
        ...

    def read(self, offset: int, views: Sequence[memoryview], *, again: bool) -> None:
        """Fill the views one after the other from `offset`; with `again`, past every cache. TierUnavailable, ChecksumMismatch."""
        ...

    def close(self) -> None: ...


class ReplicaSource(Protocol):
    """What a transport knows of an object's replicas."""

    def openable(self, object_id: str, *, recall: bool = True) -> list[str]:
        """Tiers whose replicas this process may open, nearest first; with `recall`, also one that the object is brought to for that."""
        ...

    def open(self, object_id: str, tier: str) -> Replica: ...

    def part(self, object_id: str) -> Replica:
        """A way to blocks of an object that no replica here can be opened of: those that are read are fetched, and no others."""
        ...

    def stream(self, object_id: str, *, recall: bool = True) -> Replica: ...

    def report_damage(self, object_id: str, tier: str, block: int) -> None: ...


class SegmentMapping:
    """A segment in this process's memory, read-only."""

    def __init__(self, fd: int) -> None:
        self.view = map_shared(fd, os.fstat(fd).st_size, writable=False)
        self.address = address_of(self.view)
        self._populated = bytearray(-(-len(self.view) // BLOCK_BYTES))

    def populate(self, offset: int) -> None:
        """Map the pages of one block ahead of the copy, the first time: one call instead of a fault for each page or sixteen."""
        index = offset // BLOCK_BYTES
        if not self._populated[index]:
            self._populated[index] = 1
            start = index * BLOCK_BYTES
            populate_read(self.view[start : start + BLOCK_BYTES])


class SegmentMappings:
    """The mappings of one client, kept from load to load. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], SegmentMapping] = OrderedDict()

    def mapping(self, fd: int) -> SegmentMapping:
        """Of this memfd; TierUnavailable if it cannot be mapped. `fd` stays the caller's."""
        status = os.fstat(fd)
        identity = (status.st_dev, status.st_ino)
        with self._lock:
            known = self._kept.get(identity)
            if known is None:
                try:
                    known = self._kept[identity] = SegmentMapping(fd)
                except OSError as error:
                    raise TierUnavailable(str(error), operation="map segment", tier=MEMORY, hint="raise `ulimit -v`") from error
            self._kept.move_to_end(identity)
            while len(self._kept) > _KEPT_MAPPINGS:
                self._kept.popitem(last=False)
            return known


class MappedReplica:
    """A replica in a memory segment. Bytes beyond `size_bytes` are none of it."""

    tier = MEMORY
    bounces = False

    def __init__(self, mapping: SegmentMapping, *, size_bytes: int) -> None:
        self._mapping = mapping
        self._size_bytes = min(size_bytes, len(mapping.view))

    def read(self, offset: int, views: Sequence[memoryview], *, again: bool) -> None:
        if offset + sum(map(len, views)) > self._size_bytes:
            raise ChecksumMismatch(f"the segment ends at byte {self._size_bytes}", operation="read", tier=self.tier)
        self._mapping.populate(offset)
        source = self._mapping.address + offset
        for view in views:
            ctypes.memmove(address_of(view), source, len(view))
            source += len(view)

    def close(self) -> None:
        """The mapping is kept for the next load."""


class OpenFile:
    """A replica in a file of a posix tier. Owns the descriptor."""

    def __init__(self, fd: int, tier: str, *, size_bytes: int) -> None:
        self.tier = tier
        self.bounces = True
        self.size_bytes = size_bytes
        self._fd = fd
        self._cached = False
        self._direct_fd = self._open_direct() if size_bytes >= BLOCK_BYTES else -1

    def _open_direct(self) -> int:
        """Through /proc, a description of its own: setting the flag on the lent one would set it for the daemon too."""
        try:
            return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            return -1

    def use_cache(self, use: bool = True) -> None:
        """From now on leave what is read in the page cache, for the other processes of this node that are about to read the same."""
        self._cached = use
        self.bounces = not use  # the page cache is the buffer: from there each byte goes to its place

    def map(self) -> memoryview:
        """All of the file, private and copied on write: it stays as it is now, also when the file is removed. OSError."""
        memory = mmap.mmap(self._fd, self.size_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        return memoryview(memory)

    def read(self, offset: int, views: Sequence[memoryview], *, again: bool) -> None:
        wanted_bytes = sum(map(len, views))
        if again:
            os.posix_fadvise(self._fd, offset, wanted_bytes, os.POSIX_FADV_DONTNEED)
        if self._direct_fd >= 0 and not self._cached and len(views) == 1 and address_of(views[0]) % ALIGNMENT_BYTES == 0:
            try:
                return self._fill(self._direct_fd, offset, views)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise self._unavailable(error) from error
        try:
            if self._cached:  # all of it in flight at once, where plain reading would ask for it bit by bit
                os.posix_fadvise(self._fd, offset, wanted_bytes, os.POSIX_FADV_WILLNEED)
            return self._fill(self._fd, offset, views)
        except OSError as error:
            raise self._unavailable(error) from error

    def _fill(self, fd: int, offset: int, views: Sequence[memoryview]) -> None:
        """preadv until all is there. O_DIRECT wants whole sectors: the buffers of a direct read end on one, the file's tail is
        just short."""
        rest = [view for view in views if len(view)]
        while rest:
            count = os.preadv(fd, rest[:_MAX_PIECES], offset)
            if count == 0:
                raise ChecksumMismatch(f"the replica ends at byte {offset} of {self.size_bytes}", operation="read", tier=self.tier)
            offset += count
            while rest and count >= len(rest[0]):
                count -= len(rest.pop(0))
            if count:
                rest[0] = rest[0][count:]
                if offset >= self.size_bytes:
                    return  # the padding behind a direct read's tail

    def _unavailable(self, error: OSError) -> TierUnavailable:
        return TierUnavailable(os.strerror(error.errno or 0), operation="read", tier=self.tier)

    def close(self) -> None:
        for fd in (self._direct_fd, self._fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct_fd = -1


class ContentStream:
    """The daemon's own reading of an object, over HTTP. It has verified each block; so do we, for the way is long."""

    tier = "stream"
    bounces = True

    def __init__(self, api: Api, object_id: str, *, recall: bool = True) -> None:
        self._api = api
        self._route = f"objects/{object_id}/content"
        self._recall = recall

    def read(self, offset: int, views: Sequence[memoryview], *, again: bool) -> None:
        for view in views:
            filled = 0
            wanted = {"range": f"bytes={offset}-{offset + len(view) - 1}"}
            with self._api.stream("GET", self._route, headers=wanted, recall=self._recall) as response:
                for chunk in response.iter_raw():
                    if filled + len(chunk) > len(view):
                        raise ChecksumMismatch("the answer is longer than the range that was asked for", operation="read", tier=self.tier)
                    view[filled : filled + len(chunk)] = chunk
                    filled += len(chunk)
            if filled < len(view):
                raise TierUnavailable(f"the answer ended after {filled} of {len(view)} bytes", operation="read", tier=self.tier)
            offset += filled

    def close(self) -> None:
        """The connection belongs to the pool."""
