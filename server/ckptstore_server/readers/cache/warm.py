"""Fetching files before anybody reads them: each whole, a few side by side, and a word about each.

What readers wait for goes first: these fetches queue behind them. A file that the node cannot keep, or that cannot be had, is told as a
problem, and the others go on. Nothing that was fetched is given up when the one who asked goes away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from ckptstore.cache_messages import WarmLine
from ckptstore.errors import CkptStoreError, TierUnavailable
from ckptstore.tree_messages import TreeInfo
from ckptstore_server.readers.cache.cache import AnyCopy, Cache
from ckptstore_server.readers.cache.read_ahead import RUN_BLOCKS
from ckptstore_server.readers.cache.walking import LooksAtTree, files_below
from ckptstore_tiers.checksums import block_count

#: Files that are fetched side by side; and of one file, blocks that wait to be fetched.
FILES_AT_ONCE, BLOCKS_AT_ONCE = 4, 8 * RUN_BLOCKS


class Warmer:
    def __init__(self, cache: Cache, tree: LooksAtTree, pin: Callable[[str], object]) -> None:
        self._cache = cache
        self._pin = pin
        self._tree = tree
        self._begun: set[asyncio.Task[None]] = set()

    async def warm(self, path: str, *, pin: bool = False, check: bool = False) -> AsyncIterator[WarmLine]:
        """A line per file at or below `path`, then one with the sums. `check`: only say how much of each is here; `pin`: let it stay."""
        top = await self._tree.look(path, resolve=True)
        if pin:
            await asyncio.to_thread(self._pin, top.path)
        total_files = total_bytes = files = problems = held_bytes = 0
        async for info in files_below(self._tree, top):
            total_files += 1
            total_bytes += info.size_bytes
        totals = {"total_files": total_files, "total_bytes": total_bytes}
        async for line in self._lines(top, check=check):
            files, held_bytes = files + 1, held_bytes + line.held_bytes
            problems += line.problem is not None
            yield line.model_copy(update=totals)
        yield WarmLine(path=top.path, size_bytes=total_bytes, held_bytes=held_bytes, done=True, files=files, problems=problems, **totals)

    def begin(self, path: str, *, pin: bool) -> None:
        """The same, with nobody waiting for it."""
        task = asyncio.create_task(self._unattended(path, pin=pin), name=f"warm {path}")
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    async def stop(self) -> None:
        for task in self._begun:
            task.cancel()
        await asyncio.gather(*self._begun, return_exceptions=True)

    async def _unattended(self, path: str, *, pin: bool) -> None:
        """The top of a task: what cannot be had is an operator's to know."""
        try:
            async for line in self.warm(path, pin=pin):
                if line.problem is not None:
                    self._cache.remark("warm", TierUnavailable(line.problem, operation="warm", subject=line.path))
        except CkptStoreError as error:
            self._cache.remark("warm", error)

    async def _lines(self, top: TreeInfo, *, check: bool) -> AsyncIterator[WarmLine]:
        """In no promised order: a file is told when it is there."""
        pending: set[asyncio.Task[WarmLine]] = set()
        try:
            async for info in files_below(self._tree, top):
                if len(pending) >= FILES_AT_ONCE:
                    done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        yield task.result()
                pending.add(asyncio.create_task(self._file(info, check=check)))
            for coming in asyncio.as_completed(pending):
                yield await coming
        finally:
            for task in pending:
                task.cancel()

    async def _file(self, info: TreeInfo, *, check: bool) -> WarmLine:
        line = WarmLine(path=info.path, size_bytes=info.size_bytes)
        if check:
            held = self._cache.shelf.get(info.version)
            here = info.size_bytes if info.whole else held.size_bytes if held is not None else 0
            return line.model_copy(update={"held_bytes": here})
        try:
            copy = await self._cache.open(info.path, info.version, note=False)
            await _fill(copy)
            await copy.on_disk()
        except CkptStoreError as error:
            return line.model_copy(update={"problem": str(error)})
        problem = None if copy.kept_bytes == copy.file.size_bytes else "the node has no room for it"
        return line.model_copy(update={"held_bytes": copy.kept_bytes, "problem": problem})


async def _fill(copy: AnyCopy) -> None:
    """Have every block come, unless there is no room for them. What keeps one from coming ends it."""
    copy.streams += 1
    pending: set[asyncio.Future[bytes | None]] = set()
    try:
        blocks = block_count(copy.file.size_bytes)
        for first in range(0, blocks, RUN_BLOCKS):
            if copy.streamed:
                return
            pending |= {asyncio.wrap_future(future) for future in copy.fetch(range(first, min(first + RUN_BLOCKS, blocks)))}
            while len(pending) >= BLOCKS_AT_ONCE:
                if not await _went_on(pending):
                    return
        while pending and await _went_on(pending):
            pass
    finally:
        copy.streams -= 1
        for left in pending:
            with suppress(CkptStoreError, asyncio.CancelledError):
                await left


async def _went_on(pending: set[asyncio.Future[bytes | None]]) -> bool:
    """Wait for one of them; whether all that are done were kept."""
    done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    pending -= done
    return all(future.result() is None for future in done)

