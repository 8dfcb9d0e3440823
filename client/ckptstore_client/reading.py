"""How does an object reach its destination, verified? Block by block, from the nearest replica that holds it whole.

Each 4 MiB block is checked against the digest that the catalog gave. From memory the bytes are copied straight to where they belong
and what arrived is hashed while it is in the cache, since the segment may be reused at any moment. From a file they come by O_DIRECT, since
reading a checkpoint once should not push everything else out of the page cache; into an aligned buffer, from which they are copied
out, still in the processor's cache, once they are verified. That is also quicker than to read them straight to their place, by a
tenth and more: a device writes the same few buffers again and again faster than memory it never saw (1 GiB: 450 ms, and 490 straight
into memory that was there; into new tensors 445 and 520). A block that differs is read once more, past the cache; if it still differs
it is reported, and comes from the next replica. Last comes the daemon's stream, which is also the only way over the network. When no
good replica is left the reader raises ChecksumMismatch: its destination may then hold anything, and the caller must not hand it out.

`fill` runs a few threads of its own until it returns; everything they do for long (preadv, hashing, memmove, the socket) lets
other threads run. The threads are not kept: six of them cost half a millisecond.

What a load of 256 MiB in 64 tensors costs this process, beside three requests to the daemon and a descriptor: from NVMe one preadv a
block, from memory no system call. In brackets what it cost with a preadv from memory, too, new tensors of small pages, and buffers made
anew for each load (means of three loads on a busy machine; getrusage):

    from memory, into existing tensors     40 ms of processor, 16 page faults        (76 ms, 1,033)
    from memory, into new ones             62 ms, 145                                (166 ms, 40,955)
    from NVMe, into existing tensors       73–82 ms, 26–28                           (88 ms, 4,104)
    from NVMe, into new ones               114–226 ms, 162                           (97 ms, 15,699)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import xxhash

from ckptstore.errors import ChecksumMismatch, CkptStoreError, NotFound, TierUnavailable
from ckptstore.wire import FileInfo
from ckptstore_client.replicas import MEMORY, PART, ContentStream, MappedReplica, OpenFile, Replica, ReplicaSource
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests, block_length
from ckptstore_tiers.private_memory import FreshMemory, private_memory
from ckptstore_tiers.scratch import ScratchPool
from ckptstore_tiers.sources import ALIGNMENT_BYTES, address_of

#: Reads of 4 MiB in flight: a NVMe device is at its best from 4 on (3.4 GB/s where it was measured), more helps little. Memory takes
#: as many as there are processors, up to here.
MAX_READERS = 16
#: Also on a machine of two cores: a reader waits for the device most of its time, and hashes and copies in the rest.
MIN_READERS = 6


#: Of so much of an object the rest is brought along: it is then a file that everybody here can open.
_ALMOST_ALL = 0.97
#: An object of fewer blocks is never worth it: what was read of it before would be fetched a second time.
_FEW_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes `start` to `stop` of an object belong at `address`, where the caller keeps that much writable memory alive."""

    start: int
    stop: int
    address: int


class VerifiedObject:
    """One object, open for reading. A context manager; its replicas are opened when they are first needed."""

    def __init__(
        self, file: FileInfo, source: ReplicaSource, *, operation: str, path: str, shared: bool = False, in_part: bool = False
    ) -> None:
        """`shared`: other processes of this node read the same object now. `in_part`: perhaps not all of it is wanted, so that it is not
        recalled before somebody says so (`want`)."""
        self.file = file
        self._shared = shared
        self._in_part = in_part and file.size_bytes > BLOCK_BYTES
        self.digests = BlockDigests(file.size_bytes, file.blocks)
        self._source = source
        self._operation = operation
        self._subject = f"{path}/{file.name}".rstrip("/") + f" (object {file.object_id})"
        self._lock = threading.Lock()
        self._order: list[str] | None = None
        self._opened: dict[str, Replica | CkptStoreError] = {}
        self._passed_over: list[Replica] = []
        self._scratch = ScratchPool(keep=MAX_READERS)
        self._first_block: memoryview | None = None

    def __enter__(self) -> VerifiedObject:
        return self

    def __exit__(self, *_: object) -> None:
        opened = [replica for replica in self._opened.values() if not isinstance(replica, CkptStoreError)]
        for replica in [*opened, *self._passed_over]:
            replica.close()
        self._scratch.close()

    # --- reading -----------------------------------------------------------------------------------------------------------------

    def fill(self, pieces: Sequence[Piece], *fresh: FreshMemory) -> None:
        """Read and verify every block that a piece touches. Pieces are sorted by `start` and do not overlap.

        `fresh`: memory of theirs that nobody has touched yet, so that a device is not kept waiting for its pages.
        """
        blocks = list(_touched_blocks(pieces))
        starts = [piece.start for piece in pieces]

        def read_block(index: int) -> None:
            first = max(0, bisect_right(starts, index * BLOCK_BYTES) - 1)
            self._block(index, list(_parts(pieces, first, index, self.file.size_bytes)))

        for memory in fresh if self._waits() else ():
            memory.touch()
        self._in_parallel(blocks, read_block)

    def want(self, extents: Iterable[tuple[int, int]]) -> None:
        """All that will be read from now on, as starts and stops in order: almost all of the object is recalled, where it is far away."""
        if not self._in_part or self.digests.count < _FEW_BLOCKS:
            return
        wanted = sum(1 for _ in _touched_blocks([Piece(start, stop, 0) for start, stop in extents]))
        if wanted >= _ALMOST_ALL * self.digests.count:
            with self._lock:
                self._in_part = False
                if self._order is not None and PART in self._order:
                    self._order = None

    def hold(self) -> None:
        """Open the nearest replica now. A file that is open stays readable when its object is removed."""
        self._next_replica(set())

    def read_alone(self) -> None:
        """No other process of this node wants what is read from now on: past the page cache with it."""
        with self._lock:
            self._shared = False
            for opened in self._opened.values():
                if isinstance(opened, OpenFile):
                    opened.use_cache(False)

    def first_block(self) -> memoryview:
        """The file's first block, verified, in memory of our own. It is kept: what is wanted of it later is copied from here."""
        if self._first_block is None:
            memory = private_memory(block_length(0, self.file.size_bytes))
            if len(memory):
                self.fill([Piece(0, len(memory), address_of(memory))])
            self._first_block = memory
        return self._first_block

    def map(self) -> memoryview | None:
        """The object as the nearest file that holds it gives it, mapped and not verified; None where no file of it can be opened."""
        tried = {MEMORY}  # a segment is reused, whoever has it mapped
        while (replica := self._next_replica(tried)) is not None:
            tried.add(replica.tier)
            if isinstance(replica, OpenFile) and replica.size_bytes == self.file.size_bytes > 0:
                with contextlib.suppress(OSError, TierUnavailable):
                    return replica.map()
        return None

    def each_block(self, consume: Callable[[int, memoryview], None]) -> None:
        """Give every block, verified, to `consume(offset, view)`, from several threads and in no order; views are valid during the call."""

        def read_block(index: int) -> None:
            with self._scratch.borrow() as memory:
                view = memory[: block_length(index, self.file.size_bytes)]
                self._block(index, [Piece(index * BLOCK_BYTES, index * BLOCK_BYTES + len(view), address_of(view))], straight=True)
                consume(index * BLOCK_BYTES, view)

        self._in_parallel(range(self.digests.count), read_block)

    def _in_parallel(self, blocks: Sequence[int], read_block: Callable[[int], None]) -> None:
        workers = min(MAX_READERS, max(MIN_READERS if self._waits() else 1, len(os.sched_getaffinity(0))), len(blocks))
        if workers <= 1:
            for index in blocks:
                read_block(index)
            return
        queue, lock, stop = iter(blocks), threading.Lock(), threading.Event()

        def work() -> None:
            while not stop.is_set():
                with lock:
                    index = next(queue, None)
                if index is None:
                    return
                try:
                    read_block(index)
                except BaseException:
                    stop.set()
                    raise

        with ThreadPoolExecutor(workers, thread_name_prefix="ckptstore-read") as executor:
            futures = [executor.submit(work) for _ in range(workers)]
        for future in futures:
            future.result()

    def _waits(self) -> bool:
        """Whether reading is waiting, for a device or for the network, rather than copying."""
        return not isinstance(self._opened.get(MEMORY), MappedReplica)

    def _block(self, index: int, parts: Sequence[Piece], *, straight: bool = False) -> None:
        """One block, from the first replica that has it as it was saved; `straight` to a buffer that is used again and again."""
        if index == 0 and self._first_block is not None:
            _copy_out(parts, index, address_of(self._first_block))
            return
        fault: CkptStoreError | None = None
        tried: set[str] = set()
        bad: list[str] = []
        with self._scratch.borrow() as scratch:
            while (replica := self._next_replica(tried)) is not None:
                tried.add(replica.tier)
                try:
                    if self._deliver(replica, index, parts, scratch, straight):
                        return
                    fault = self._mismatch(index, replica.tier)
                except ChecksumMismatch as error:
                    fault = error
                except (TierUnavailable, NotFound) as error:
                    fault = fault or error
                    continue
                if replica.tier not in (ContentStream.tier, PART):
                    bad.append(replica.tier)
                    self._pass_over(replica)
                    self._report(replica.tier, index)
        raise self._final(fault, index, bad)

    def _deliver(self, replica: Replica, index: int, parts: Sequence[Piece], scratch: memoryview, straight: bool) -> bool:
        """Whether the block arrived as it was saved; the second look is past the cache."""
        length = block_length(index, self.file.size_bytes)
        for again in (False, True):
            bounces = replica.bounces and not (straight and _fits_as_it_is(parts, length))
            if bounces:
                direct = -(-length // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
                whole = scratch[: direct if replica.tier != ContentStream.tier else length]
                replica.read(index * BLOCK_BYTES, [whole], again=again)
                views = [scratch[:length]]
            else:
                views = list(_scattered(parts, index, length, scratch))
                replica.read(index * BLOCK_BYTES, views, again=again)
            if _digest(views) == self.digests.block(index):
                if bounces:
                    _copy_out(parts, index, address_of(scratch))
                return True
        return False

    # --- replicas ----------------------------------------------------------------------------------------------------------------

    def _next_replica(self, tried: set[str]) -> Replica | None:
        """The nearest replica that has not been tried, opened; the daemon's stream comes last."""
        with self._lock:
            if self._order is None:
                self._order = self._ways()
            for tier in self._order:
                if tier in tried:
                    continue
                if tier not in self._opened:
                    self._opened[tier] = self._open(tier)
                opened = self._opened[tier]
                if not isinstance(opened, CkptStoreError):
                    return opened
        return None

    def _ways(self) -> list[str]:
        if not self._in_part:
            return [*self._source.openable(self.file.object_id), ContentStream.tier]
        return [*(self._source.openable(self.file.object_id, recall=False) or [PART]), ContentStream.tier]

    def _open(self, tier: str) -> Replica | CkptStoreError:
        if tier == ContentStream.tier:
            return self._source.stream(self.file.object_id, recall=not self._in_part)
        try:
            if tier == PART:
                return self._source.part(self.file.object_id)
            opened = self._source.open(self.file.object_id, tier)
            if self._shared and isinstance(opened, OpenFile):
                opened.use_cache()
            return opened
        except CkptStoreError as error:  # evicted or reused meanwhile: simply the next one
            return error

    def _pass_over(self, replica: Replica) -> None:
        """A segment with one wrong block was most likely given to another save: no later block is looked for there. A file is."""
        with self._lock:
            if replica.tier == MEMORY and self._opened.get(MEMORY) is replica:
                self._opened[MEMORY] = NotFound("the segment is in use for something else", operation="read", tier=MEMORY)
                self._passed_over.append(replica)  # other threads may be reading from it: closed at the end

    def _report(self, tier: str, index: int) -> None:
        """Tell the daemon, which looks for itself. That it cannot be told must not keep us from reading the next replica."""
        with contextlib.suppress(CkptStoreError):
            self._source.report_damage(self.file.object_id, tier, index)

    def _mismatch(self, index: int, tier: str) -> ChecksumMismatch:
        why = f"block {index} of {self.digests.count} differs from what was saved"
        return ChecksumMismatch(why, operation=self._operation, subject=self._subject, tier=tier)

    def _final(self, fault: CkptStoreError | None, index: int, bad: list[str]) -> CkptStoreError:
        if fault is None:
            return TierUnavailable("no replica can be read", operation=self._operation, subject=self._subject)
        why = f"block {index}: {fault.why}; no replica is left to read it from"
        tier = ", ".join(bad) or fault.tier
        return type(fault)(why, operation=self._operation, subject=self._subject, tier=tier, hint=fault.hint)


def _touched_blocks(pieces: Sequence[Piece]) -> Iterator[int]:
    last = -1
    for piece in pieces:
        if piece.stop > piece.start:
            first = max(last + 1, piece.start // BLOCK_BYTES)
            yield from range(first, (piece.stop - 1) // BLOCK_BYTES + 1)
            last = max(last, (piece.stop - 1) // BLOCK_BYTES)


def _parts(pieces: Sequence[Piece], first: int, index: int, size_bytes: int) -> Iterator[Piece]:
    """The pieces of block `index`, cut to it; `first` is the first that may touch it."""
    begin, end = index * BLOCK_BYTES, index * BLOCK_BYTES + block_length(index, size_bytes)
    for position in range(first, len(pieces)):
        piece = pieces[position]
        if piece.start >= end:
            return
        start, stop = max(piece.start, begin), min(piece.stop, end)
        if start < stop:
            yield Piece(start, stop, piece.address + start - piece.start)


def _fits_as_it_is(parts: Sequence[Piece], length: int) -> bool:
    """Whether O_DIRECT can put the block where it belongs: all of it in one place, on whole pages."""
    whole = len(parts) == 1 and parts[0].stop - parts[0].start == length
    return whole and parts[0].address % ALIGNMENT_BYTES == 0 and length % ALIGNMENT_BYTES == 0


def _memory_at(address: int, size_bytes: int) -> memoryview:
    return memoryview((ctypes.c_char * size_bytes).from_address(address)).cast("B")


def _scattered(parts: Sequence[Piece], index: int, length: int, scratch: memoryview) -> Iterator[memoryview]:
    """Where the bytes of a block go, in order: the parts, and scratch for what nobody wants."""
    begin = position = index * BLOCK_BYTES
    for part in parts:
        if part.start > position:
            yield scratch[position - begin : part.start - begin]
        yield _memory_at(part.address, part.stop - part.start)
        position = part.stop
    if position < begin + length:
        yield scratch[position - begin : length]


def _digest(views: Sequence[memoryview]) -> bytes:
    if len(views) == 1:
        return xxhash.xxh3_128_digest(views[0])
    hasher = xxhash.xxh3_128()
    for view in views:
        hasher.update(view)
    return hasher.digest()


def _copy_out(parts: Sequence[Piece], index: int, source: int) -> None:
    for part in parts:
        target = source + part.start - index * BLOCK_BYTES
        if part.address != target:
            ctypes.memmove(part.address, target, part.stop - part.start)
