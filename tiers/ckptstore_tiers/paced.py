"""How fast may bytes go into a tier? A source that gives its blocks no faster than a pace that all puts into the tier share.

The pace is a leaky bucket: each block takes its share of time, and what was not used for a while is worth one burst at most,
so that over any longer stretch the configured bytes per second hold. Waiting happens in the thread that asks for the block,
outside the lock; blocks are let through in the order in which they asked. What else may hold a block back (training that needs the
machine) is another `Gate`: see `ckptstore_server.lane`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from ckptstore.errors import ConfigInvalid
from ckptstore_tiers.checksums import BLOCK_BYTES, block_length
from ckptstore_tiers.interface import BlockSource


class Gate(Protocol):
    """What a block has to pass before it is read."""

    def take(self, size_bytes: int) -> None:
        """Return when so many bytes more may pass; raise if they never will."""

    def read(self, size_bytes: int) -> None:
        """`take` for bytes that the tier does not write as they are: its limit is not touched."""

    def write(self, size_bytes: int) -> None:
        """`take` for what is written in their stead: it counts against the limit, and against nothing else."""


class Pace:
    """Bytes per second, shared by whoever holds this object. `clock` and `sleep` are the test's to replace, in seconds."""

    def __init__(
        self,
        bytes_per_s: int,
        *,
        burst_bytes: int = BLOCK_BYTES,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if bytes_per_s <= 0:
            raise ConfigInvalid(f"a pace of {bytes_per_s} bytes per second would never let anything through", operation="set pace")
        self._bytes_per_s = bytes_per_s
        self._burst_s = burst_bytes / bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._paid_until_s = clock() - self._burst_s
        self._lock = threading.Lock()

    def reserve(self, size_bytes: int) -> float:
        """Take the turn of `size_bytes` more, and say in how many seconds it comes."""
        with self._lock:
            now_s = self._clock()
            start_s = max(self._paid_until_s, now_s - self._burst_s)
            self._paid_until_s = start_s + size_bytes / self._bytes_per_s
            return max(0.0, self._paid_until_s - now_s)

    def take(self, size_bytes: int) -> None:
        """Wait until `size_bytes` more may pass."""
        if (wait_s := self.reserve(size_bytes)) > 0:
            self._sleep(wait_s)

    def read(self, size_bytes: int) -> None:
        """A limit is for what is written."""

    def write(self, size_bytes: int) -> None:
        self.take(size_bytes)


class PacedSource:
    """Another source, at a pace. A block that is read again (it changed, or its file is written anew) is paid for again."""

    def __init__(self, source: BlockSource, pace: Gate, *, take: Callable[[int], None] | None = None) -> None:
        """`take` is what a block passes, `pace.take` unless told otherwise."""
        self._source = source
        self._pace = pace
        self._take = take or pace.take

    @property
    def size_bytes(self) -> int:
        return self._source.size_bytes

    @property
    def stable(self) -> bool:
        return self._source.stable

    def block(self, index: int, scratch: memoryview) -> memoryview:
        self._take(max(0, block_length(index, self.size_bytes)))
        return self._source.block(index, scratch)

    def in_two_steps(self) -> tuple[BlockSource, Callable[[BlockSource], BlockSource]]:
        """The source to read, and the way to write what was made of all of it."""
        read = PacedSource(self._source, self._pace, take=self._pace.read)
        return read, lambda made: PacedSource(made, self._pace, take=self._pace.write)


def in_two_steps(source: BlockSource) -> tuple[BlockSource, Callable[[BlockSource], BlockSource]]:
    """For a tier that reads the whole source before it writes something else: each step at its own pace, if the source has one."""
    return source.in_two_steps() if isinstance(source, PacedSource) else (source, lambda made: made)
