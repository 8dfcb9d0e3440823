"""Where is this save by now? The handle that `save` and `put` give back.

It asks the daemon each time and keeps nothing but this process's own part of the save, so it may be used from any thread, or thrown
away: the save goes on without it. All answers are about all ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from typing import Any

from ckptstore.durability import is_as_safe_as
from ckptstore.errors import AttemptAborted, CkptStoreError, NotFound, WaitTimeout
from ckptstore.wire import LONG_POLL_S, AttemptStatus
from ckptstore_client.connection import is_loss
from ckptstore_client.saving import Save
from ckptstore_client.waiting import PUBLISHED, SNAPSHOT, Ask, checked_stage, not_yet


class PendingCheckpoint:
    """A checkpoint (or a put) on its way through the tiers."""

    def __init__(self, path: str, save: Save, ask: Ask, known_tiers: Callable[[], list[str]]) -> None:
        self.path = path
        #: seconds that this rank's own save took: plan, open (with any wait for a slot), copy, and all of it
        self.stall_s = save.stall_s
        self._save = save
        self._ask = ask
        self._known_tiers = known_tiers

    def __repr__(self) -> str:
        if not self._save.opened.done():
            return f"PendingCheckpoint({self.path!r}, being opened)"
        return f"PendingCheckpoint({self.path!r}, attempt {self.attempt_id}{', skipped' if self.skipped else ''})"

    @property
    def attempt_id(self) -> str:
        """With a guard: once the daemon has answered, or the error that it answered with."""
        return self._save.opened.result().attempt_id

    @property
    def skipped(self) -> bool:
        """on_busy="skip", and no slot was free: nothing was saved, and the attempt is over for all ranks."""
        return self._save.opened.result().skipped

    def when_handed_over(self, call: Callable[[], object]) -> None:
        """`call`, from any thread, when this rank's part is the daemon's, or when it is certain that it will not be: `wait` says which."""
        self._save.handed.add_done_callback(lambda _: call())

    @contextmanager
    def before_mutation(self) -> Iterator[None]:
        """Around any change of guarded tensors by other means than the optimizer's step: waits until they are copied."""
        self._save.copied.wait()
        yield

    def wait(self, tier: str = SNAPSHOT, timeout_s: float | None = None) -> None:
        """Return when `tier` or a deeper one holds all of it: "snapshot" (every rank has handed over), or a configured tier's name.

        AttemptAborted: there will be no checkpoint, and why. WaitTimeout: not yet; it goes on. InvalidInput: no such tier.
        """
        known = checked_stage(tier, self._known_tiers, self.path)
        self._wait(tier, timeout_s, lambda status: status.snapshot if tier == SNAPSHOT else is_as_safe_as(tier, status.durability, known))

    def wait_published(self, timeout_s: float | None = None) -> None:
        """Return when it is visible to everybody, and so in some durable tier. Errors as `wait`."""
        self._wait(PUBLISHED, timeout_s, lambda status: status.state == PUBLISHED)

    def _wait(self, stage: str, timeout_s: float | None, reached: Callable[[AttemptStatus], bool]) -> None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._wait_handed(timeout_s)
        while True:
            left_s = LONG_POLL_S if deadline is None else max(0.0, min(LONG_POLL_S, deadline - time.monotonic()))
            status = self._status(wait=stage, timeout_s=left_s)
            if status.state == "aborted":
                raise AttemptAborted(status.reason or "the attempt was aborted", operation="save", subject=self.path)
            if reached(status):
                return
            if deadline is not None and time.monotonic() >= deadline:
                where = ", ".join(status.durability) or ("snapshot" if status.snapshot else "not all ranks have handed over")
                raise not_yet(self._ask, self.path, stage, timeout_s, where)

    def _wait_handed(self, timeout_s: float | None) -> None:
        """Until this rank's part is the daemon's, or its error: that of opening, of copying, or of handing over."""
        try:
            self._save.handed.result(timeout_s)
        except FutureTimeout as error:
            why = f"this rank has not handed over after {timeout_s:g} s"
            raise WaitTimeout(why, operation="wait", subject=self.path) from error
        except CkptStoreError as error:
            # A daemon that was lost meanwhile may have it, or has aborted it: its successor knows, if the attempt was opened at all.
            if not is_loss(error) or self._save.opened.exception() is not None:
                raise

    def status(self) -> AttemptStatus:
        """What the daemon knows of it now."""
        return self._status()

    @property
    def durability(self) -> list[str]:
        """The tiers that hold all of it, in order; empty until it is published."""
        return self._status().durability

    @property
    def timings(self) -> dict[str, float]:
        """Seconds: this rank's `stall` with its parts, and since the attempt was opened, when it reached `snapshot` and each tier."""
        return {f"{name}_s": seconds for name, seconds in (self._status().timings_s | self.stall_s).items()}

    def _status(self, **params: Any) -> AttemptStatus:
        try:
            status: AttemptStatus = self._ask(lambda api: api.call("GET", f"attempts/{self.attempt_id}", AttemptStatus, **params))
        except NotFound as error:
            why = f"the store no longer knows this attempt ({error.why})"
            raise AttemptAborted(why, operation="save", subject=self.path) from error
        return status
