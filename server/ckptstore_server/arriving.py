"""Objects that are being recalled: their unfinished files, and who reads out of them while later blocks are still to come.

A reader on this node gets a descriptor of the unfinished file, and the end of a pipe through which it learns what is there: pairs of
block numbers (first, behind the last), as they become readable; its end says that nothing more comes. The bytes pass through nobody
else: a block goes from the store's socket to the disk, and from the disk to its reader. The daemon's own streams wait for blocks here.

Every reader checks every block it reads, so what is promised about bytes does not depend on this. A reader that does not empty its pipe
is dropped, and streams instead. Thread-safe; the tier's threads tell, everybody else asks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator

from ckptstore.arrivals import PIPE_BYTES, pack_blocks
from ckptstore.catalog.model import StoredFile
from ckptstore.errors import ChecksumMismatch, NotFound, TierUnavailable
from ckptstore_tiers.checksums import BLOCK_BYTES, block_count

#: A recall that brings no block for so long is not waited for; its own timeouts end it sooner.
BLOCK_TIMEOUT_S = 600.0


class Arriving:
    """One object on its way into one tier. Implements `Follower`; `begun_to` is called, in the tier's thread, when it can be read."""

    def __init__(self, file: StoredFile, tier: str, begun_to: Callable[[], object]) -> None:
        self.file = file
        self.tier = tier
        self._begun_to = begun_to
        self._changed = threading.Condition()
        self._fd = -1
        self._blocks = bytearray(block_count(file.size_bytes))
        self._pipes: list[int] = []
        self._ended = False

    # --- what the tier tells -----------------------------------------------------------------------------------------------------

    def begun(self, fd: int) -> None:
        with self._changed:
            self._drop()  # those who read from a file that is written anew
            self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            self._blocks = bytearray(len(self._blocks))
        with contextlib.suppress(RuntimeError):  # the daemon is ending: nobody waits any more
            self._begun_to()

    def stored(self, index: int) -> None:
        with self._changed:
            self._blocks[index] = 1
            self._pipes = [pipe for pipe in self._pipes if _told(pipe, pack_blocks(index, index + 1))]
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing more comes: the object is whole under its name, or will not be."""
        with self._changed:
            self._ended = True
            self._drop()
            self._changed.notify_all()

    def _drop(self) -> None:
        for fd in (*self._pipes, self._fd):
            if fd >= 0:
                os.close(fd)
        self._pipes, self._fd = [], -1

    # --- what readers ask --------------------------------------------------------------------------------------------------------

    @property
    def readable(self) -> bool:
        with self._changed:
            return self._fd >= 0

    def descriptor(self) -> int:
        """The unfinished file, read-only, for the caller to close; NotFound if there is none (any more)."""
        with self._changed:
            if self._fd < 0:
                raise NotFound("the recall has ended", operation="open", subject=self.file.key, tier=self.tier)
            return os.dup(self._fd)

    def follow(self) -> int:
        """The reading end of a new pipe that tells what is there and what comes, for the caller to close."""
        with self._changed:
            if self._fd < 0:
                raise NotFound("the recall has ended", operation="follow", subject=self.file.key, tier=self.tier)
            reading, writing = os.pipe()
            with contextlib.suppress(OSError):  # more than the user may have in pipes: then a shorter one
                fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            os.set_blocking(writing, False)
            if all(_told(writing, pack_blocks(*run)) for run in _runs(self._blocks)):
                self._pipes.append(writing)
            return reading

    def reader(self) -> ArrivingReader:
        return ArrivingReader(self, self.descriptor())

    def wait_for(self, first: int, last: int) -> None:
        """Return when the blocks can be read. TierUnavailable if they never will be."""
        with self._changed:
            there = self._changed.wait_for(lambda: self._ended or all(self._blocks[first : last + 1]), BLOCK_TIMEOUT_S)
            if all(self._blocks[first : last + 1]):
                return
        why = "the recall ended without it" if there else f"it did not arrive within {BLOCK_TIMEOUT_S:g} s"
        raise TierUnavailable(f"block {first}: {why}", operation="read", subject=self.file.key, tier=self.tier)


class ArrivingReader:
    """An `ObjectReader` that waits for what it reads."""

    def __init__(self, arriving: Arriving, fd: int) -> None:
        self._arriving = arriving
        self._fd = fd

    @property
    def size_bytes(self) -> int:
        return self._arriving.file.size_bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        view = memoryview(buffer).cast("B")
        if not len(view):
            return
        self._arriving.wait_for(offset // BLOCK_BYTES, (offset + len(view) - 1) // BLOCK_BYTES)
        filled = 0
        while filled < len(view):
            count = os.preadv(self._fd, [view[filled:]], offset + filled)
            if count == 0:
                raise ChecksumMismatch(
                    f"the file ends at byte {offset + filled}",
                    operation="read",
                    subject=self._arriving.file.key,
                    tier=self._arriving.tier,
                )
            filled += count

    def fileno(self) -> int | None:
        return None

    def close(self) -> None:
        os.close(self._fd)


class Arrivals:
    """All recalls of this daemon that can be followed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arriving: dict[str, Arriving] = {}

    @contextlib.contextmanager
    def announced(self, arriving: Arriving) -> Iterator[Arriving]:
        """Others find it for a `with` block; at its end it has ended for them, too."""
        object_id = arriving.file.object_id
        with self._lock:
            self._arriving[object_id] = arriving
        try:
            yield arriving
        finally:
            with self._lock:
                del self._arriving[object_id]
            arriving.end()

    def brings(self, object_id: str, tier: str) -> bool:
        """Whether the object is on its way into this tier, readable or not yet."""
        with self._lock:
            arriving = self._arriving.get(object_id)
        return arriving is not None and arriving.tier == tier

    def find(self, object_id: str) -> Arriving | None:
        """The recall of this object, if its first byte may be read by now."""
        with self._lock:
            arriving = self._arriving.get(object_id)
        return arriving if arriving is not None and arriving.readable else None


def _told(pipe: int, message: bytes) -> bool:
    """Whether the message went into the pipe; if not, the pipe is closed: its reader is gone, or does not read."""
    try:
        os.write(pipe, message)  # shorter than PIPE_BUF: all of it or nothing
    except OSError:
        os.close(pipe)
        return False
    return True


def _runs(blocks: bytearray) -> Iterator[tuple[int, int]]:
    """The stretches of blocks that are there: first, behind the last."""
    position = 0
    while (first := blocks.find(1, position)) >= 0:
        stop = blocks.find(0, first)
        position = stop if stop >= 0 else len(blocks)
        yield first, position
