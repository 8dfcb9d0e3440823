"""How is an object read while the daemon is still recalling it? Out of the unfinished file, each block as soon as it is there.

The daemon lends the file's descriptor and a pipe that tells which blocks can be read. Whichever thread needs a block that is not there
yet empties the pipe for all of them. The pipe's end without the block means that the recall failed, or that the daemon is gone: the
reader then takes the next replica. Blocks are verified as those of any other replica are.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Sequence

from ckptstore.arrivals import PIPE_BYTES, unpack_blocks
from ckptstore.errors import TierUnavailable
from ckptstore_client.replicas import OpenFile
from ckptstore_tiers.checksums import BLOCK_BYTES, block_count

#: A recall that brings nothing for so long is given up; the store's own timeouts end it sooner.
SILENCE_S = 600.0


class ArrivingFile(OpenFile):
    """A replica that is being written. Owns both descriptors."""

    def __init__(self, fd: int, pipe: int, tier: str, *, size_bytes: int) -> None:
        super().__init__(fd, tier, size_bytes=size_bytes)
        self._pipe = pipe
        self._there = bytearray(block_count(size_bytes))
        self._listening = threading.Lock()
        self._ended = False

    def read(self, offset: int, views: Sequence[memoryview], *, again: bool) -> None:
        wanted_bytes = min(sum(map(len, views)), self.size_bytes - offset)
        for index in range(offset // BLOCK_BYTES, -(-(offset + wanted_bytes) // BLOCK_BYTES)):
            self._wait_for(index)
        super().read(offset, views, again=again)

    def map(self) -> memoryview:
        """Once all of it is there."""
        for index in range(len(self._there)):
            self._wait_for(index)
        return super().map()

    def _wait_for(self, index: int) -> None:
        while not self._there[index]:
            with self._listening:
                if self._there[index]:
                    return
                if self._ended:
                    raise TierUnavailable(f"the recall ended before block {index} came", operation="read", tier=self.tier)
                self._listen()

    def _listen(self) -> None:
        """Note the next blocks that the daemon tells of, or that there are no more."""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        if not poll.poll(SILENCE_S * 1000):
            raise TierUnavailable(f"nothing was recalled for {SILENCE_S:g} s", operation="read", tier=self.tier)
        data = os.read(self._pipe, PIPE_BYTES)
        self._ended = not data
        for first, stop in unpack_blocks(data):
            self._there[first:stop] = b"\1" * (min(stop, len(self._there)) - first)

    def close(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        super().close()
