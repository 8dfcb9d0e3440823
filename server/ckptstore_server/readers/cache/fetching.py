"""In which order do blocks come from an origin, and how many at once?

Each origin has its own few threads: one that is slow or dead holds up its own files and nobody else's. What somebody waits for goes before
what was only foreseen; of each kind, what was asked first. A piece of work that was foreseen and is then waited for moves up.

Threads are made when they are needed. `close` waits for what runs, which is bounded by the origins' own timeouts, and ends the rest.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ckptstore.errors import TierUnavailable


class Flight:
    """Blocks on their way by one piece of work; each one's result comes once, to all who wait for it."""

    def __init__(self, blocks: Sequence[int], work: Callable[[Flight], None], *, urgent: bool) -> None:
        """`work` sets each block's result; what it raises is the result of those that it has not got to."""
        self.results: dict[int, Future[bytes | None]] = {index: Future() for index in blocks}
        for result in self.results.values():
            result.set_running_or_notify_cancel()  # one of those who wait may be cancelled; the others wait on
        self.urgent = urgent
        self.begun = False  # under the queue's lock
        self._work = work

    def run(self) -> None:
        try:
            self._work(self)
        except BaseException as error:  # noqa: BLE001 - the top of a piece of work: whoever waits for it gets the error
            self._fail(error)

    def give_up(self) -> None:
        self._fail(TierUnavailable("the daemon is stopping", operation="fetch"))

    def _fail(self, error: BaseException) -> None:
        for result in self.results.values():
            if not result.done():
                result.set_exception(error)


class FetchQueue:
    """The threads of one origin."""

    def __init__(self, threads: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(threads, name)
        self._lock = threading.Lock()
        self._waiting: list[tuple[bool, int, Flight]] = []
        self._numbers = itertools.count()
        self._closed = False

    def add(self, flight: Flight) -> None:
        """Queue it; once more, now that it is urgent, moves it up."""
        with self._lock:
            if not self._closed:
                heapq.heappush(self._waiting, (not flight.urgent, next(self._numbers), flight))
                self._executor.submit(self._run_first)
                return
        flight.give_up()

    def _run_first(self) -> None:
        """Called once for each entry; of a flight that moved up the second one finds it begun."""
        with self._lock:
            if not self._waiting:
                return
            _, _, flight = heapq.heappop(self._waiting)
            if flight.begun:
                return
            flight.begun = True
        flight.run()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, []
            left = {id(flight): flight for _, _, flight in waiting if not flight.begun}
            for flight in left.values():
                flight.begun = True
        for flight in left.values():
            flight.give_up()
        self._executor.shutdown(wait=True, cancel_futures=True)


class FetchQueues:
    """One queue for each origin. An origin lives as long as the daemon; all those of one `kind` that do not, share a queue."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._queues: dict[int, tuple[object, FetchQueue]] = {}

    def of(self, origin: object, kind: object = None) -> FetchQueue:
        key = origin if kind is None else kind
        with self._lock:
            if id(key) not in self._queues:
                self._queues[id(key)] = (key, FetchQueue(self._threads, f"fetch-{len(self._queues)}"))
            return self._queues[id(key)][1]

    def close(self) -> None:
        for _, queue in self._queues.values():
            queue.close()
