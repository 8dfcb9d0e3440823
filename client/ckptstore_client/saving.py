"""How does a rank save? Plan, take a slot, copy while the attempt is opened, hand over.

The caller waits for the copy and, if that took longer, for the answer to the opening, so that `save` raises what the daemon refuses;
then for the hand-over, so that a trainer may be killed as soon as `save` has returned. Over the network that is an upload, which goes
on in a thread of the saver's. With a guard (see `guard`) the copy of what the optimizers own goes on there, and so do opening and hand-
over. An ending process finishes them first; their errors are told by `wait`.

Whatever fails after the attempt was joined aborts it for all ranks, promptly, so that nobody waits for a rank that will not come;
also a state that cannot be stored, which is found before anything is asked for. Each call counts as one save of its path, failed
and skipped ones too, and the next one works.

Any number of threads may save at once; plans and views are shared (`Staging`). What is durable at return: nothing; after
`wait("snapshot")` the bytes are the daemon's, and outlive this process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

from ckptstore.errors import Busy, CatalogUnavailable, CkptStoreError, InvalidInput, WaitTimeout
from ckptstore.paths import new_id
from ckptstore.wire import Abort, AttemptOpened, AttemptStatus, OpenAttempt, SegmentGrant
from ckptstore_client.connection import Connection, is_loss
from ckptstore_client.guard import Guards, checked_guard, identity, owned
from ckptstore_client.process_group import Membership, ProcessGroup
from ckptstore_client.sharding.slices import Extent, ShardRequest
from ckptstore_client.staging import BoundState, StagedState, Staging
from ckptstore_client.transport import Target, Transport

T = TypeVar("T")
_log = logging.getLogger("ckptstore")

OnBusy = Literal["wait", "skip", "fail"]
#: With on_busy="wait", how long to wait for a slot before the save fails as Busy: the daemon's own patience with an attempt.
BUSY_TIMEOUT_S = 600.0
#: The daemon mostly holds the request itself while it waits for a slot; where it answers at once, this paces the next one.
BUSY_PAUSE_S = 0.25
#: Saves of this process that are opened, copied or handed over at the same time; more wait for their turn.
_THREADS = 8
#: More slots than any daemon lends to one client.
_MOST_SLOTS = 16


@dataclass(frozen=True)
class SaveRequest:
    """What the user asked for, checked."""

    path: str
    step: int | None
    replace: bool
    metadata: dict[str, Any]
    on_busy: OnBusy
    incremental: bool = False
    #: what `shards=` and `expect=` say
    shards: Mapping[str, Extent] | None = None
    expect: tuple[str, ...] = ()
    behind: bool = False

    def sharding(self, member: Membership) -> ShardRequest:
        return ShardRequest(member.rank, member.world_size, self.shards, self.expect)

    def message(self, member: Membership, size_bytes: int, grant: SegmentGrant | None = None) -> OpenAttempt:
        return OpenAttempt(
            path=self.path,
            token=member.token,
            ordinal=member.ordinal,
            rank=member.rank,
            world_size=member.world_size,
            replace=self.replace,
            step=self.step,
            metadata=self.metadata,
            size_bytes=size_bytes,
            on_busy=self.on_busy,
            incremental=self.incremental,
            segment=grant,
        )


def checked_metadata(metadata: object, *, operation: str, path: str) -> dict[str, Any]:
    """`metadata`, if it is a dict that JSON gives back as it was."""
    if metadata is None:
        return {}
    try:
        if isinstance(metadata, dict) and json.loads(json.dumps(metadata, allow_nan=False)) == metadata:
            return metadata
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"metadata must be what JSON can hold: {error}", operation=operation, subject=path) from error
    raise InvalidInput("metadata must be a dict of str keys and of what JSON can hold", operation=operation, subject=path)


def checked_step(step: object, path: str) -> int | None:
    if step is None or (type(step) is int and -(1 << 63) <= step < 1 << 63):
        return step
    raise InvalidInput(f"step is a number of 64 bits, not {step!r:.80}", operation="save", subject=path)


@dataclass(eq=False)
class Save:
    """One save of this rank, under way. `handed` ends when the daemon has the bytes, or with what went wrong."""

    opened: Future[AttemptOpened]
    handed: Future[None]
    #: the tensors may change
    copied: threading.Event = field(default_factory=threading.Event)
    #: how long the caller was held up, and by what, in seconds
    stall_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    def finished(cls, opened: AttemptOpened) -> Save:
        """One with nothing left to do here: a put whose files are stored, or a save that was skipped."""
        save = cls(_done(opened), _done(None))
        save.copied.set()
        return save


class Saver:
    def __init__(self, connection: Connection, staging: Staging, group: ProcessGroup) -> None:
        self._connection = connection
        self._staging = staging
        self._guards = Guards()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ckptstore-save")
        self.group = group

    def save(self, request: SaveRequest, state: Any, rank: int | None, world_size: int | None, guard: object = None) -> Save:
        """The tensors may change when this returns; with a guard, those that the optimizers own only in their next step.

        With a guard, and where the request says `behind`, what comes after the copy goes on when this has returned.
        """
        clock = _Stopwatch()
        optimizers = checked_guard(guard, request.path)
        member = self.group.next_save(request.path, rank, world_size)
        try:
            staged = self._staging.plan(state, request.sharding(member))
        except CkptStoreError as error:
            self._tell_the_others(request, member, error)
            raise
        clock.lap("plan")
        transport = self._connection.transport()
        try:
            return self._save(transport, request, member, staged, optimizers, clock)
        except CkptStoreError as error:
            if not is_loss(error):
                raise
            self._connection.lost(transport)
        return self._save(self._connection.transport(), request, member, staged, optimizers, clock)

    def _save(
        self,
        transport: Transport,
        request: SaveRequest,
        member: Membership,
        staged: StagedState,
        optimizers: Sequence[Any],
        clock: _Stopwatch,
    ) -> Save:
        try:
            target = transport.acquire(staged.size_bytes, request.message(member, staged.size_bytes))
        except CkptStoreError as error:
            if not is_loss(error):
                self._tell_the_others(request, member, error)
            raise
        save = Save(Future(), Future())
        open_ = partial(self._open, transport, request, member, staged.size_bytes, target)
        rank_save = _RankSave(self._connection, transport, member.rank, target, staged.size_bytes, save, open_)
        if target is None and (opened := rank_save.open()).skipped:
            return Save.finished(opened)
        try:
            if target is None:
                target = rank_save.target = transport.target(opened, staged.size_bytes)
            clock.lap("open")
            bound = self._staging.bind(staged, target.view, target.key)
            later = guarded_leaves(staged, optimizers)
            bound.copy(None if not later else set(range(len(staged.values))) - later)
            if later:
                self._guards.hold(optimizers, save.copied)
            clock.lap("copy")
            if not later:
                rank_save.finish_copy(bound, later)
            if not later and not request.behind:
                rank_save.open()
                clock.lap("open")
        except BaseException as error:
            rank_save.fail(error)
            raise
        if later or request.behind or not transport.hands_over_at_once:
            self._run(rank_save.finish, bound, later)
        else:
            rank_save.finish(bound, later)
            clock.lap("hand_over")
        save.stall_s = clock.laps_s()
        return save

    def _open(
        self, transport: Transport, request: SaveRequest, member: Membership, size_bytes: int, target: Target | None
    ) -> AttemptOpened:
        """Join the attempt, if that is not done already; while no slot is free, or the catalog is locked, wait or skip as was asked for."""

        def ask_by_request() -> AttemptOpened:
            message = request.message(member, size_bytes, None if target is None else target.grant)
            return transport.api.call("POST", "attempts", AttemptOpened, message)

        ask = ask_by_request if target is None or not target.opening else partial(transport.opened, target)
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                return ask()
            except WaitTimeout:
                if ask is ask_by_request:
                    raise
                if request.on_busy == "wait":
                    ask = ask_by_request
                continue
            except (Busy, CatalogUnavailable) as error:
                if request.on_busy != "wait":
                    return self._not_opened(request, member, error)
                if time.monotonic() > deadline:
                    self._tell_the_others(request, member, error)
                    raise
            ask = ask_by_request
            time.sleep(BUSY_PAUSE_S)

    def _not_opened(self, request: SaveRequest, member: Membership, error: Busy | CatalogUnavailable) -> AttemptOpened:
        """For a save that does not wait: it fails; or is skipped, which where there is no slot the daemon says itself."""
        if request.on_busy == "fail" or isinstance(error, Busy):
            raise error
        self._run(self._tell_the_others, request, member, error)
        # The id is nobody's: nothing was joined. Waiting for it says that there will be no checkpoint, as for any skip.
        return AttemptOpened(attempt_id=new_id(), skipped=True)

    def _tell_the_others(self, request: SaveRequest, member: Membership, error: CkptStoreError) -> None:
        """Join the attempt only to end it, so that the other ranks do not wait for this one."""
        if member.world_size == 1:
            return
        message = request.message(member, 1).model_copy(update={"on_busy": "skip"})
        with contextlib.suppress(CkptStoreError):
            transport = self._connection.transport()
            opened = transport.api.call("POST", "attempts", AttemptOpened, message)
            if not opened.skipped:
                abort_quietly(transport, opened.attempt_id, f"rank {member.rank} failed: {error!s:.500}")

    # --- ahead of the first save ---------------------------------------------------------------------------------------------------

    def reserve(self, state: Any) -> Future[int]:
        """Plan now; in the background, have the daemon make every slot that a client may have, and map them here. Gives their number."""
        return self._run(self._reserve, self._staging.plan(state))

    def _reserve(self, staged: StagedState) -> int:
        transport = self._connection.transport()
        targets: list[Target] = []
        try:
            while len(targets) < _MOST_SLOTS and (target := transport.acquire(staged.size_bytes)) is not None:
                targets.append(target)
                self._staging.bind(staged, target.view, target.key)
        finally:
            for target in targets:
                transport.give_back(target)
        return len(targets)

    # --- in the background ---------------------------------------------------------------------------------------------------------

    def _run(self, call: Callable[..., T], *args: Any) -> Future[T]:
        try:
            return self._threads.submit(call, *args)
        except RuntimeError:  # the interpreter is ending, or the store was closed: no thread can be had any more
            return _done_by(call, *args)

    def close(self) -> None:
        """Wait until what was copied is handed over."""
        self._threads.shutdown(wait=True)


@dataclass(eq=False)
class _RankSave:
    """What is left of one save when its slot is known."""

    connection: Connection
    transport: Transport
    rank: int
    target: Target | None  # None until the attempt brings one
    size_bytes: int
    save: Save
    join: Callable[[], AttemptOpened]

    def open(self) -> AttemptOpened:
        """What came of joining the attempt, asked once."""
        if not self.save.opened.done():
            try:
                self.save.opened.set_result(self.join())
            except BaseException as error:  # noqa: BLE001 - raised to whoever asks
                self.save.opened.set_exception(error)
        return self.save.opened.result()

    def finish_copy(self, bound: BoundState, leaves: set[int]) -> None:
        if leaves:
            bound.copy(leaves)
        bound.seal()
        self.save.copied.set()

    def finish(self, bound: BoundState, leaves: set[int]) -> None:
        """Copy these leaves, and hand over. What goes wrong is for who waits, and for the log."""
        try:
            if leaves:
                self.finish_copy(bound, leaves)
            opened = self.open()
            assert self.target is not None
            if opened.skipped:
                self.transport.give_back(self.target)
            else:
                self.transport.hand_over(opened, self.rank, self.target, self.size_bytes)
            self.save.handed.set_result(None)
        except BaseException as error:  # noqa: BLE001 - the top of a task
            _log.warning("a save was not handed over: %s", error)
            self.fail(error)
            self.save.handed.set_exception(error)

    def fail(self, error: BaseException) -> None:
        """End the attempt for all ranks, if it was joined at all."""
        self.save.copied.set()  # nobody reads the tensors any more
        if isinstance(error, CkptStoreError) and is_loss(error):
            self.connection.lost(self.transport)  # the daemon aborts what a lost session had joined
            if not self.save.opened.done():
                self.save.opened.set_exception(error)
            return
        with contextlib.suppress(CkptStoreError):
            opened = self.open()
            if not opened.skipped:
                abort_quietly(self.transport, opened.attempt_id, f"rank {self.rank} failed: {error!s:.500}")
        if self.target is not None:
            self.transport.give_back(self.target)


def guarded_leaves(staged: StagedState, optimizers: Sequence[Any]) -> set[int]:
    """The leaves that only a step of the optimizers changes."""
    if not optimizers:
        return set()
    theirs = owned(optimizers)
    stored = (leaf for leaves in staged.plan.stored.values() for leaf in leaves)
    return {leaf for leaf in stored if hasattr(staged.values[leaf], "data_ptr") and identity(staged.values[leaf]) in theirs}


class _Stopwatch:
    """How long the caller is held up, by parts."""

    def __init__(self) -> None:
        self._began_s = self._lap_s = time.perf_counter()
        self._laps_s: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now_s = time.perf_counter()
        self._laps_s[name] = self._laps_s.get(name, 0.0) + now_s - self._lap_s
        self._lap_s = now_s

    def laps_s(self) -> dict[str, float]:
        return {**self._laps_s, "stall": time.perf_counter() - self._began_s}


def _done(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future


def _done_by(call: Callable[..., T], *args: Any) -> Future[T]:
    future: Future[T] = Future()
    try:
        future.set_result(call(*args))
    except BaseException as error:  # noqa: BLE001 - as an executor does it
        future.set_exception(error)
    return future


def abort_quietly(transport: Transport, attempt_id: str, reason: str) -> None:
    """The caller has an error to raise already; one more, of the abort, would only hide it. The daemon's expiry is the safety net."""
    with contextlib.suppress(CkptStoreError):
        transport.api.call("POST", f"attempts/{attempt_id}/abort", AttemptStatus, Abort(reason=reason[:1000]))


def checked_timeout(timeout_s: float | None, operation: str) -> None:
    if timeout_s is not None and not (timeout_s >= 0 and math.isfinite(timeout_s)):
        raise InvalidInput("timeout_s is a number of seconds, 0 or more, or None", operation=operation, subject=str(timeout_s))
