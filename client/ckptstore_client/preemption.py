"""`with store.preemption(folder) as notice`: a training loop takes a snapshot when it is asked to, and a last one before it is ended.

    with store.preemption("/runs/gpt", until="pfs") as notice:
        for step in range(first, last):
            train()
            if step % 1000 == 0 or notice.wanted(step):
                store.save(f"/runs/gpt/step-{step:06}", state, step=step)
            if notice.leaving:
                break

A signal, or `notice.preempt(why)` from whatever hears that the machine is taken away, asks for the last snapshot; `ckptstore snapshot`
asks for one more. `wanted` costs a lock when nothing is asked. With several ranks a notice to any of them is all ranks' notice, and all
are told True at the same step, without a collective call (`safe_points`). At the end of the `with` a job that had a notice waits, for what
is left of `grace_s` since then, until `until` holds its newest checkpoint, and `kept` says truthfully how far that got.
A daemon that is started again within that time is waited for; one that hangs costs no more than that time.

Two threads: one follows what the daemon is asked, one passes a notice on to it; at the end a third waits for the last snapshot. The signal
handler itself only notes the time. Handlers that were set before are not called, and come back at the end.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, TypeVar

import stamina

from ckptstore.errors import CkptStoreError, InvalidInput, NotFound
from ckptstore.snapshot_messages import (
    MAX_GRACE_S,
    AskSnapshot,
    RankHold,
    SnapshotAgreement,
    SnapshotInfo,
    SnapshotRequest,
    SnapshotRequests,
)
from ckptstore.wire import Message, PublicationInfo, Status
from ckptstore_client.connection import Connection, is_loss
from ckptstore_client.pending import PendingCheckpoint
from ckptstore_client.process_group import Membership
from ckptstore_client.safe_points import SafePoints

_log = logging.getLogger("ckptstore")
Answer = TypeVar("Answer", bound=Message)

#: How long one question to the daemon waits for news, in seconds.
FOLLOW_S = 5.0
#: Between two tries to reach a daemon that is away, in seconds.
PAUSE_S = 0.5
#: After the grace time, for an answer that says how far the last snapshot got, in seconds.
LAST_WORD_S = 1.0


@dataclass(frozen=True)
class Kept:
    """Where the job's newest checkpoint got within the grace time. `path` is None if none was saved after it was asked for."""

    path: str | None
    until: str
    reached: bool
    durability: tuple[str, ...]
    why: str = ""  # it was not reached


class Preemption:
    """What `store.preemption` gives. `wanted` is the loop's; everything else may be called from any thread."""

    def __init__(
        self,
        connection: Connection,
        folder: str,
        member: Membership,
        newest: Callable[[], PendingCheckpoint | None],
        *,
        signals: Sequence[int],
        grace_s: float,
        until: str | None,
    ) -> None:
        """`newest` is what was saved last through the same store."""
        self.folder = folder
        #: set at the end of the `with`, if there was a notice
        self.kept: Kept | None = None
        #: the last snapshot was asked for at this safe point or an earlier one: save it and leave the loop
        self.leaving = False
        self._connection = connection
        self._member = member
        self._newest = newest
        self._grace_s = grace_s
        self._until = self._tier(until)
        self._points = SafePoints(self._say)
        self._calls = 0
        self._noticed: tuple[str, float] | None = None  # why, and when
        self._before: PendingCheckpoint | None = None  # the newest when the last one was asked for
        #: a signal handler may put into it, where it must not take a lock
        self._news: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._signals = tuple(signals)
        self._handlers: dict[int, Any] = {}
        self._process = os.getpid()

    def _tier(self, until: str | None) -> str:
        """The tier to wait for: unless named, the nearest durable one that other nodes see."""
        status = self._connection.run(lambda transport: transport.api.call("GET", "status", Status))
        durable = [tier for tier in status.tiers if tier.durable]
        if until is None:
            return next((tier.name for tier in durable if tier.shared), durable[-1].name)
        if until not in (tier.name for tier in durable):
            hint = f"known are: {', '.join(tier.name for tier in durable)}"
            raise InvalidInput(f"there is no durable tier {until!r}", operation="heed preemption", subject=self.folder, hint=hint)
        return until

    def __enter__(self) -> Preemption:
        for number in self._signals:
            try:
                self._handlers[number] = signal.signal(number, self._on_signal)
            except (ValueError, OSError) as error:  # not the main thread, or no signal that can be heeded
                self._restore_handlers()
                hint = "signals=(), and call notice.preempt(why) where you hear of it"
                raise InvalidInput(f"signal {number}: {error}", operation="heed preemption", subject=self.folder, hint=hint) from error
        for work in (self._follow, self._tell):
            threading.Thread(target=work, name="ckptstore-notice", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._noticed is not None:
                self.kept = self._keep()
        finally:
            self._over.set()
            self._points.end()
            self._news.put(None)
            self._restore_handlers()

    # --- the loop's --------------------------------------------------------------------------------------------------------------

    def wanted(self, step: int | None = None) -> bool:
        """A safe point: whether to save now, which all ranks are told at the same one. All ranks come by with the same steps, each greater
        than the last; without, the calls count. Waits for the other ranks for a moment, if at all, and only when something is asked."""
        self._calls += 1
        due = self._points.reach(self._calls if step is None else operator.index(step))
        ending = next((request.why for request in due if request.ends_job), None)
        if ending is None and self._member.world_size == 1 and self._noticed is not None:
            ending = self._noticed[0]
        if ending is None or self.leaving:
            return bool(due)
        self._noticed = self._noticed or (ending, time.monotonic())
        self._before = self._newest()
        self.leaving = True
        return True

    def preempt(self, why: str) -> None:
        """The job is to end soon: its next safe point is for the last snapshot. From any thread; again changes nothing."""
        if self._noticed is None:
            self._noticed = why, time.monotonic()
            if self._member.world_size > 1:
                self._news.put(why)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            self.preempt(signal.Signals(number).name)
            return
        self._restore_handlers()  # in a forked child, such as a worker that loads data: it is meant to end
        os.kill(os.getpid(), number)

    def _restore_handlers(self) -> None:
        for number, former in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if former is None else former)

    # --- the end -----------------------------------------------------------------------------------------------------------------

    def _keep(self) -> Kept:
        """Wait for the last snapshot as long as there is time, and tell where it got."""
        assert self._noticed is not None
        reason, noticed_s = self._noticed
        pending, deadline_s = self._newest(), noticed_s + self._grace_s
        if pending is None or pending is self._before:
            if self._member.rank == 0:  # where one rank has the whole state, it saves for the others
                _log.warning("%s: no snapshot was taken", reason)
            return Kept(None, self._until, False, (), "nothing was saved after the notice")
        kept = self._within_grace(pending, deadline_s)
        where, level = ", ".join(kept.durability) or "no durable tier", logging.INFO if kept.reached else logging.WARNING
        _log.log(level, "%s: %s is in %s%s", reason, kept.path, where, kept.why and f" ({kept.why})")
        return kept

    def _within_grace(self, pending: PendingCheckpoint, deadline_s: float) -> Kept:
        """By a thread of its own: no daemon that hangs, or takes long to start again, may hold the job longer than its grace time."""
        told: queue.SimpleQueue[Kept] = queue.SimpleQueue()
        threading.Thread(target=lambda: told.put(self._seen_off(pending, deadline_s)), name="ckptstore-last", daemon=True).start()
        try:
            return told.get(timeout=max(0.0, deadline_s - time.monotonic()) + LAST_WORD_S)
        except queue.Empty:
            return Kept(pending.path, self._until, False, (), "the daemon did not answer in time")

    def _seen_off(self, pending: PendingCheckpoint, deadline_s: float) -> Kept:
        why = ""
        try:
            _insist(deadline_s, lambda left_s: pending.wait_published(timeout_s=left_s))
            self._drain_first(pending)
            _insist(deadline_s, lambda left_s: pending.wait(self._until, timeout_s=left_s))
        except CkptStoreError as error:
            why = str(error)
        durability: tuple[str, ...] = ()
        with contextlib.suppress(CkptStoreError):
            durability = tuple(pending.durability)
        return Kept(pending.path, self._until, not why, durability, why)

    def _drain_first(self, pending: PendingCheckpoint) -> None:
        """Older checkpoints that still wait to be drained are of less use now. Without this it only comes after them."""
        if self._member.rank == 0:
            with contextlib.suppress(CkptStoreError):
                self._call("POST", f"publications/{pending.attempt_id}/drain-first", PublicationInfo)

    # --- threads -----------------------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Pass a notice on to all ranks."""
        why = self._news.get()
        while why is not None and not self._over.is_set():
            asked = AskSnapshot(path=self.folder, why=f"{why} (rank {self._member.rank})"[:1000], token=self._member.token)
            try:
                self._call("POST", "snapshots", SnapshotInfo, asked)
                return
            except CkptStoreError as error:
                _log.warning("a notice could not be passed on to the other ranks yet: %s", error)
                self._over.wait(PAUSE_S)

    def _follow(self) -> None:
        after = 0
        while not self._over.is_set() and not self._connection.closed:
            try:
                news = self._ask_for_news(after)
            except CkptStoreError:
                self._over.wait(PAUSE_S)  # a daemon that is away: saves will say so
                continue
            for request in news.requests:
                self._agree(request)
                after = request.number

    def _ask_for_news(self, after: int) -> SnapshotRequests:
        return self._call(
            "GET",
            "snapshots",
            SnapshotRequests,
            path=self.folder,
            token=self._member.token,
            after=after,
            timeout_s=FOLLOW_S,
            grace_s=min(self._grace_s, MAX_GRACE_S),
        )

    def _agree(self, request: SnapshotRequest) -> None:
        """Until the ranks have agreed, or never will."""
        route = f"snapshots/{request.request_id}/agreement"
        spoken = False
        while not self._over.is_set() and not self._connection.closed:
            try:
                if not spoken:
                    agreement, spoken = self._points.take_up(request), True
                else:
                    agreement = self._call("GET", route, SnapshotAgreement, token=self._member.token, timeout_s=FOLLOW_S)
                    self._points.heard(request, agreement)
                if agreement.closed or agreement.at_step is not None:
                    return
            except NotFound:
                return
            except CkptStoreError:
                self._over.wait(PAUSE_S)

    def _say(self, request: SnapshotRequest, holds_at: int) -> SnapshotAgreement:
        mine = self._member
        hold = RankHold(token=mine.token, rank=mine.rank, world_size=mine.world_size, holds_at=holds_at)
        return self._call("POST", f"snapshots/{request.request_id}/ranks", SnapshotAgreement, hold)

    def _call(self, method: str, route: str, answer: type[Answer], message: Message | None = None, **params: Any) -> Answer:
        return self._connection.run(lambda transport: transport.api.call(method, route, answer, message, **params))


def _insist(deadline_s: float, wait: Callable[[float], None]) -> None:
    """`wait`, which gets the seconds that are left; again when the daemon was lost meanwhile: one that is started again goes on with it."""

    def left_s() -> float:
        return max(0.0, deadline_s - time.monotonic())

    def may_pass(error: Exception) -> bool:
        return left_s() > 0 and isinstance(error, CkptStoreError) and (error.retryable or is_loss(error))

    for attempt in stamina.retry_context(on=may_pass, attempts=None, timeout=None, wait_initial=PAUSE_S, wait_max=PAUSE_S, wait_jitter=0):
        with attempt:
            wait(left_s())
