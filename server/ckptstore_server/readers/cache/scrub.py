"""Does what is kept still have the bytes that came in? Each file is read again now and then, slowly, and compared with its checksums.

A block that differs is fetched again if its origin has that version still; a file that was lent is not changed, another takes its place.
When a file was compared is its data's time of change, so that it is known after a restart as well.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from ckptstore.errors import ChecksumMismatch, CkptStoreError
from ckptstore_server.readers.cache.cache import Cache
from ckptstore_server.readers.cache.copy import Copy
from ckptstore_server.readers.cache.shelf import Held
from ckptstore_tiers.checksums import block_count

#: Between two blocks, in seconds: 4 MiB in this time is what a scrub may read.
PAUSE_S = 0.04


class Scrub:
    def __init__(self, cache: Cache, *, every_s: float, pause_s: float = PAUSE_S) -> None:
        self._cache = cache
        self._every_s = every_s
        self._pause_s = pause_s

    async def turn(self) -> None:
        """Compare the file that was not compared for longest, if it is due."""
        due = [held for held in self._cache.shelf.held() if held.scrubbed_s + self._every_s <= time.time()]
        if due and self._cache.state in ("ok", "full"):
            await self.check(min(due, key=lambda held: held.scrubbed_s))

    async def check(self, held: Held) -> int:
        """How many blocks were damaged."""
        held.scrubbed_s = time.time()
        try:
            copy = await self._cache.open(held.file.path, held.file.version, note=False)
        except CkptStoreError:
            return 0  # its origin is gone, and it is not whole: it will give way
        if not isinstance(copy, Copy):
            return 0
        damaged = [index for index in range(block_count(copy.file.size_bytes)) if not await self._is_good(copy, index)]
        if damaged:
            why = f"{len(damaged)} blocks were damaged on the disk"
            self._cache.remark("scrub", ChecksumMismatch(why, operation="scrub", subject=held.file.path, hint="they are fetched again"))
            for index in damaged:
                with suppress(CkptStoreError):
                    for future in copy.fetch([index]):
                        await asyncio.wrap_future(future)
        self._cache.note_scrubbed(held.file.version)
        return len(damaged)

    async def _is_good(self, copy: Copy, index: int) -> bool:
        await asyncio.sleep(self._pause_s)
        return await asyncio.to_thread(copy.check, index)

