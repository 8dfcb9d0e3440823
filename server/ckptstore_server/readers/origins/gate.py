"""Is a storage worth asking now? After a failure nobody asks for a while, then one does, and the others go by what that one finds.

So an outage costs one caller the time that finding out takes, and not each of a thousand in turn. A failure that came quickly costs nobody
much, and may concern one file only (that the credentials do not open, say): it closes nothing. Any thread may use it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ckptstore.errors import CkptStoreError, TierUnavailable

#: How long a storage that did not answer is left alone.
PAUSE_S = 3.0
#: A failure that took less is quick.
QUICK_S = 1.0


class Gate:
    def __init__(self, *, pause_s: float = PAUSE_S, quick_s: float = QUICK_S) -> None:
        self._quick_s = quick_s
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._failure: TierUnavailable | None = None
        self._not_before_s = 0.0
        #: Hears, from any thread, when it is found to be down; not again before it has answered.
        self.on_down: Callable[[TierUnavailable], object] = lambda error: None

    @property
    def failure(self) -> TierUnavailable | None:
        """Why it does not answer; None while it does."""
        return self._failure

    @contextmanager
    def asking(self) -> Iterator[None]:
        """For one question. Raises the last failure at once if it is not time yet to ask again."""
        with self._lock:
            failure = self._failure
            if failure is not None:
                if time.monotonic() < self._not_before_s:
                    raise TierUnavailable(failure.why, operation=failure.operation, subject=failure.subject, tier=failure.tier)
                self._not_before_s = time.monotonic() + self._pause_s  # this caller finds out; the others wait for it
        began_s = time.monotonic()
        try:
            yield
        except TierUnavailable as error:
            self._failed(error, took_s=time.monotonic() - began_s, again=failure is not None)
            raise
        except CkptStoreError:
            self._answered()
            raise
        self._answered()

    def _failed(self, error: TierUnavailable, *, took_s: float, again: bool) -> None:
        with self._lock:
            closes = again or took_s >= self._quick_s
            is_news = closes and self._failure is None
            if closes:
                self._failure, self._not_before_s = error, time.monotonic() + self._pause_s
        if is_news:
            self.on_down(error)

    def _answered(self) -> None:
        with self._lock:
            self._failure = None
