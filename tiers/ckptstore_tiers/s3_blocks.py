"""How does an S3 object feed a put into another tier? Ranges of several blocks, fetched ahead, each block given on as soon as it is there.

A put asks for blocks of 4 MiB, a few at a time; a request for each would cost four times as many requests, and leave most connections
idle. So the ranges that follow are fetched while earlier blocks are hashed and written. A block is lent where it was received: the put
hashes and writes it from there, and what was received is never copied. A range's memory is free for the next one when all its blocks
were used.

Blocks that are asked for twice (a file that has to be written anew) or far out of order are read by themselves. Any thread may ask;
each range is received by a thread of the tier's. At the end of the `with` block nobody writes into the memory any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack

from ckptstore.errors import TierUnavailable
from ckptstore_tiers.checksums import BLOCK_BYTES, block_length
from ckptstore_tiers.private_copy import copy_bytes
from ckptstore_tiers.s3_buffers import PartBuffers
from ckptstore_tiers.sources import address_of

#: Blocks that may be lent at once; one more is copied, so that a put which gathers blocks cannot wait for itself.
LENT_BLOCKS = 8
#: A range's own timeouts end it long before.
BLOCK_TIMEOUT_S = 1800.0

#: Receives the bytes from an offset into a view, telling after each piece how many have arrived.
ReadRange = Callable[[int, memoryview, Callable[[int], None]], None]


class _Ended(Exception):
    """Nobody wants the rest of this range."""


class _Range:
    def __init__(self, first_block: int, view: memoryview, buffer: memoryview) -> None:
        self.first_block = first_block
        self.view = view
        self.buffer = buffer
        self.filled_bytes = 0
        self.fault: Exception | None = None
        #: blocks that nobody has asked for, or that are still lent
        self.unused = set(range(first_block, first_block + -(-len(view) // BLOCK_BYTES)))
        self.lent: set[int] = set()

    def block(self, index: int) -> memoryview:
        start = (index - self.first_block) * BLOCK_BYTES
        return self.view[start : start + BLOCK_BYTES]


class S3Blocks:
    """A `BlockSource`, for one `with` block."""

    stable = True

    def __init__(
        self,
        size_bytes: int,
        read_range: ReadRange,
        executor: ThreadPoolExecutor,
        buffers: PartBuffers,
        *,
        range_bytes: int,
        ranges_ahead: int,
    ) -> None:
        self.size_bytes = size_bytes
        self._read_range = read_range
        self._executor = executor
        self._buffers = buffers
        self._range_blocks = range_bytes // BLOCK_BYTES
        self._ranges_ahead = ranges_ahead
        self._changed = threading.Condition()
        self._ranges: dict[int, _Range] = {}
        self._fetches: set[Future[None]] = set()
        self._next_range = 0
        self._lent: dict[int, tuple[_Range, int]] = {}  # by the scratch that was offered for the block
        self._ended = False
        self._stack = ExitStack()

    def __enter__(self) -> S3Blocks:
        self._stack.enter_context(self._buffers.in_use())
        with self._changed:
            self._fetch_ahead()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ended = True
            fetches = set(self._fetches)
        for fetch in fetches:
            fetch.cancel()
        wait(fetches)
        for one in self._ranges.values():
            self._buffers.give_back(one.buffer)
        self._stack.close()

    def block(self, index: int, scratch: memoryview) -> memoryview:
        place = address_of(scratch)
        with self._changed:
            self._return(place)
            one = self._ranges.get(index // self._range_blocks)
            if one is not None and index in one.unused and index not in one.lent:
                one.lent.add(index)
                view = self._arrived(one, index)
                self._lent[place] = (one, index)
                if len(self._lent) <= LENT_BLOCKS:
                    return view
            else:
                view = None
        copy = scratch[: block_length(index, self.size_bytes)]
        if view is None:
            self._read_range(index * BLOCK_BYTES, copy, lambda count: None)
            return copy
        copy_bytes(view, copy)
        with self._changed:
            self._return(place)
        return copy

    # --- under the lock --------------------------------------------------------------------------------------------------------

    def _arrived(self, one: _Range, index: int) -> memoryview:
        view = one.block(index)
        end_bytes = (index - one.first_block) * BLOCK_BYTES + len(view)
        there = self._changed.wait_for(lambda: one.filled_bytes >= end_bytes or one.fault is not None, BLOCK_TIMEOUT_S)
        if one.filled_bytes >= end_bytes:
            return view
        if one.fault is not None:
            raise one.fault
        assert not there
        raise TierUnavailable(f"block {index} did not arrive within {BLOCK_TIMEOUT_S:g} s", operation="read")

    def _return(self, place: int) -> None:
        """What was lent for this scratch is used; after the last block of a range its memory goes to the next one."""
        one, index = self._lent.pop(place, (None, 0))
        if one is None:
            return
        one.unused.discard(index)
        if not one.unused:
            del self._ranges[one.first_block // self._range_blocks]
            self._buffers.give_back(one.buffer)
            self._fetch_ahead()

    def _fetch_ahead(self) -> None:
        range_bytes = self._range_blocks * BLOCK_BYTES
        while not self._ended and len(self._ranges) < self._ranges_ahead and self._next_range * range_bytes < self.size_bytes:
            start = self._next_range * range_bytes
            length = min(range_bytes, self.size_bytes - start)
            buffer = self._buffers.borrow(range_bytes)
            one = _Range(start // BLOCK_BYTES, buffer[:length], buffer)
            self._ranges[self._next_range] = one
            self._next_range += 1
            fetch = self._executor.submit(self._fetch, one)
            self._fetches.add(fetch)
            fetch.add_done_callback(self._fetches.discard)

    # --- in the tier's threads -------------------------------------------------------------------------------------------------

    def _fetch(self, one: _Range) -> None:
        """The top of a range's thread: what goes wrong is told to whoever asks for its blocks."""

        def arrived(filled_bytes: int) -> None:
            if filled_bytes < len(one.view) and filled_bytes // BLOCK_BYTES == one.filled_bytes // BLOCK_BYTES:
                return  # no block more than before
            with self._changed:
                if self._ended:
                    raise _Ended
                one.filled_bytes = filled_bytes
                self._changed.notify_all()

        try:
            self._read_range(one.first_block * BLOCK_BYTES, one.view, arrived)
        except _Ended:
            pass
        except Exception as error:  # noqa: BLE001 - raised again where the blocks are used
            with self._changed:
                one.fault = error
                self._changed.notify_all()
