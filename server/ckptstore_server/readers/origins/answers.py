"""What did a storage say of its files, and is that still good?

An answer is good for the refresh time of its attachment; so a change upstream is seen that much later at most, and a million looks cost a
million requests only if they are of a million files. What a listing tells of its entries answers later looks at them. When the storage
does not answer, what it said last stays good, so that readers of cached files go on; what was never asked for is TierUnavailable.

The event loop's thread asks; the storage is asked in threads. `read_into` is called in any thread: a read that finds another version has
the old answer forgotten. What is kept is bounded by entries, the ones used longest ago go first.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ckptstore.errors import NotFound, StaleVersion, TierUnavailable
from ckptstore_server.readers.origin import FileVersion, StreamsParts
from ckptstore_server.readers.origins.storage import Found, FoundPage, Storage

#: Entries that are remembered of one attachment; each costs half a kilobyte.
REMEMBERED = 65_536
#: Questions to one storage at once.
THREADS = 8


@dataclass(frozen=True)
class _Answer:
    said: Found | FoundPage | NotFound
    at_s: float

    @property
    def weight(self) -> int:
        return 1 + (len(self.said.entries) if isinstance(self.said, FoundPage) else 0)


class Answers:
    """An `Origin`, and what there is to know of the files that it has."""

    def __init__(self, storage: Storage, *, refresh_s: float) -> None:
        self.storage = storage
        self._refresh_s = refresh_s
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="ask")
        self._lock = threading.Lock()
        self._known: OrderedDict[Hashable, _Answer] = OrderedDict()
        self._weight = 0
        self._flights: dict[Hashable, asyncio.Task[Found | FoundPage]] = {}

    async def look(self, name: str) -> Found:
        found = await self._answer(name, lambda: self.storage.look(name))
        assert isinstance(found, Found)
        return found

    async def page(self, folder: str, after: str, limit: int) -> FoundPage:
        page = await self._answer((folder, after, limit), lambda: self.storage.page(folder, after, limit))
        assert isinstance(page, FoundPage)
        return page

    def page_good_for_s(self, folder: str, after: str, limit: int) -> float:
        """For how long this page, just given, would be given again."""
        with self._lock:
            known = self._known.get((folder, after, limit))
        return 0.0 if known is None else max(0.0, known.at_s + self._refresh_s - time.monotonic())

    def read_into(self, file: FileVersion, offset_bytes: int, into: memoryview) -> None:
        with self._forgetting(file):
            self.storage.read_into(file, offset_bytes, into)

    @contextmanager
    def _forgetting(self, file: FileVersion) -> Iterator[None]:
        """Around a read: what finds another version ends what was known of the file."""
        try:
            yield
        except StaleVersion:
            self.forget(file.name)
            raise

    @classmethod
    def of(cls, storage: Storage, *, refresh_s: float) -> Answers:
        return (StreamedAnswers if isinstance(storage, StreamsParts) else Answers)(storage, refresh_s=refresh_s)

    def forget(self, name: str) -> None:
        """Whoever asks for it next gets a new answer."""
        with self._lock:
            if (answer := self._known.pop(name, None)) is not None:
                self._weight -= answer.weight

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        self.storage.close()

    async def _answer(self, question: Hashable, ask: Callable[[], Found | FoundPage]) -> Found | FoundPage:
        """What is known, if it is young enough; else what the storage says now, asked once, whoever wants to know."""
        with self._lock:
            known = self._known.get(question)
            if known is not None:
                self._known.move_to_end(question)
        if known is None or time.monotonic() - known.at_s > self._refresh_s:
            try:
                return await self._asked_once(question, ask)
            except TierUnavailable:
                if known is None:
                    raise
        if isinstance(known.said, NotFound):
            raise _again(known.said)
        return known.said

    async def _asked_once(self, question: Hashable, ask: Callable[[], Found | FoundPage]) -> Found | FoundPage:
        flight = self._flights.get(question)
        if flight is None:
            flight = asyncio.create_task(self._ask(question, ask), name=f"ask {self.storage.identity}")
            self._flights[question] = flight
            flight.add_done_callback(lambda done: (self._flights.pop(question, None), done.cancelled() or done.exception()))
        return await asyncio.shield(flight)

    async def _ask(self, question: Hashable, ask: Callable[[], Found | FoundPage]) -> Found | FoundPage:
        at_s = time.monotonic()  # before it is asked: it may be that old when it comes
        try:
            said = await asyncio.get_running_loop().run_in_executor(self._executor, ask)
        except NotFound as error:
            self._keep({question: _Answer(_again(error), at_s)})
            raise
        entries = said.entries if isinstance(said, FoundPage) else ()
        self._keep({entry.name: _Answer(entry, at_s) for entry in entries} | {question: _Answer(said, at_s)})
        return said

    def _keep(self, new: dict[Any, _Answer]) -> None:
        with self._lock:
            for question, answer in new.items():
                old = self._known.pop(question, None)
                self._weight += answer.weight - (old.weight if old is not None else 0)
                self._known[question] = answer
            while self._weight > REMEMBERED and len(self._known) > 1:
                self._weight -= self._known.popitem(last=False)[1].weight


class StreamedAnswers(Answers):
    """Of a storage that gives several parts by one request."""

    def read_parts(self, file: FileVersion, offset_bytes: int, size_bytes: int, parts: Iterator[memoryview]) -> None:
        assert isinstance(self.storage, StreamsParts)
        with self._forgetting(file):
            self.storage.read_parts(file, offset_bytes, size_bytes, parts)


def _again(error: NotFound) -> NotFound:
    """The same, without the frames that it was raised through."""
    return NotFound(error.why, operation=error.operation, subject=error.subject)
