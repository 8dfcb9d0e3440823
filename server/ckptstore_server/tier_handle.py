"""A configured tier as the daemon holds it: opened when it answers, watched, measured.

A tier that is down when the daemon starts (an object store, a mount) must not keep the daemon from starting, since saves go on without
it; so a handle opens its tier when it is first needed, and again after a failure, with growing pauses. Opening includes the check that
the root belongs to this store: a tier of another store is never used; and what this node's last daemon left half written there goes,
before anything new is written. Thread-safe: executors' threads share a handle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ckptstore.config import TierSettings
from ckptstore.errors import CkptStoreError, TierFull, TierUnavailable, WrongStore
from ckptstore.wire import DrainAlarm
from ckptstore_server.identity import ROOT_KEYS, claim_root
from ckptstore_server.lane import Lane
from ckptstore_server.mounted import check_mounted
from ckptstore_server.rate_meter import RateMeter
from ckptstore_tiers.codecs import CodecTier
from ckptstore_tiers.interface import TierUsage
from ckptstore_tiers.open_tiers import open_tier

#: The pauses between attempts to open a tier that is down, in seconds.
REOPEN_PAUSES_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)


class TierHandle:
    """Name, settings, state and, once it answers, the tier itself."""

    def __init__(
        self,
        settings: TierSettings,
        *,
        home: Path,
        store_id: str,
        unfinished_names: Callable[[str], Iterable[str]],
        mark_lost: Callable[[str], int],
        lane: Lane,
    ) -> None:
        """`mark_lost` takes out of use whatever the catalog says is in a tier that turned out empty; it says how much that was."""
        self.settings = settings
        self.name = settings.name
        self.lane = lane
        self.written = RateMeter()
        self.alarm: DrainAlarm | None = None
        self.last_error: str | None = None
        self.state: Literal["ok", "full", "down"] = "down"
        self._home = home
        self._store_id = store_id
        self._unfinished_names = unfinished_names
        self._mark_lost = mark_lost
        self.lost_objects = 0  # said to be in the root, which was empty when it was opened: a disk was replaced, or wiped
        self._tier: CodecTier | None = None
        self._lock = threading.Lock()
        self._failures = 0
        self._not_before_s = 0.0
        self._free_when_full: int | None = None

    def open(self) -> CodecTier:
        """The tier; opens it if need be. TierUnavailable while it is down, WrongStore if it belongs to another store."""
        with self._lock:
            if self._tier is not None:
                return self._tier
            if time.monotonic() < self._not_before_s:
                raise TierUnavailable(self.last_error or "the tier is down", operation="open tier", tier=self.name)
            try:
                check_mounted(self.settings, self._home)
                tier = open_tier(self.settings, self._home)
                try:
                    claim_root(tier, self._store_id, before=self._forget_what_was_there)
                except CkptStoreError:
                    tier.close()
                    raise
                self._sweep(tier)
            except CkptStoreError as error:
                self._note_failure(error)
                raise
            self._tier = tier
            self._note_success()
            return tier

    def _forget_what_was_there(self) -> None:
        """Before anything new is written there, or a new replica would be taken for a lost one and lost indeed."""
        self.lost_objects = self._mark_lost(self.name)

    def _sweep(self, tier: CodecTier) -> None:
        """Leftovers cost space, not safety: a tier that cannot sweep (a bucket whose uploads may not be listed) is used all the same."""
        try:
            tier.sweep([*self._unfinished_names(self.name), *ROOT_KEYS])
        except CkptStoreError as error:
            self.last_error = str(error)

    @property
    def opened(self) -> CodecTier | None:
        """The tier if it is open, without trying."""
        return self._tier

    def usage(self) -> TierUsage:
        tier = self._tier
        return tier.usage() if tier is not None else TierUsage(0, self.settings.capacity, None)

    def fill(self) -> float:
        """Used fraction of what the tier may hold; 0 where it has no bound."""
        usage = self.usage()
        if not usage.limit_bytes or usage.free_bytes is None:
            return 0.0
        return 1.0 - usage.free_bytes / usage.limit_bytes

    def close(self) -> None:
        with self._lock:
            if self._tier is not None:
                self._tier.close()
                self._tier = None

    @contextmanager
    def watched(self, *, writes: bool = False) -> Iterator[CodecTier]:
        """The tier for one piece of work, whose outcome decides the state that `status` shows.

        A tier that was full is so until something is written (`writes`), or there is more room: that it can be read says nothing.
        """
        tier = self.open()
        try:
            yield tier
        except (TierFull, TierUnavailable) as error:
            if error.tier in (self.name, None):  # else it is another tier that failed, from which something was to be copied here
                with self._lock:
                    self._note_failure(error)
            raise
        else:
            if self.state != "ok" and (writes or self.state != "full" or self._has_more_room()):
                with self._lock:
                    self._note_success()

    def _has_more_room(self) -> bool:
        """Than when it was full; also where nobody can tell."""
        free_bytes = self._free_bytes()
        return free_bytes is None or self._free_when_full is None or free_bytes > self._free_when_full

    def _free_bytes(self) -> int | None:
        try:
            return self.usage().free_bytes
        except CkptStoreError:
            return None

    def _note_failure(self, error: CkptStoreError) -> None:
        self.last_error = str(error)
        self.state = "full" if isinstance(error, TierFull) else "down"
        self._free_when_full = self._free_bytes() if self.state == "full" else None
        if self._tier is None and not isinstance(error, WrongStore):
            self._not_before_s = time.monotonic() + REOPEN_PAUSES_S[min(self._failures, len(REOPEN_PAUSES_S) - 1)]
            self._failures += 1

    def _note_success(self) -> None:
        self.state = "ok"
        self._failures = 0
