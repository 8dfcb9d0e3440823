"""How does a rank save? Plan, ask for a slot, copy, hand over: the four steps between the call of `save` and its return.

Whatever fails after the attempt was joined aborts it for all ranks, promptly, so that nobody waits for a rank that will not come;
also a state that cannot be stored, which is found before anything is asked for. Each call counts as one save of its path, failed
and skipped ones too, and the next one works.

Any number of threads may save at once; plans and views are shared (`Staging`). What is durable at return: nothing; the bytes are
the daemon's, and outlive this process (over the network only after `wait("snapshot")`).
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from dataclasses import dataclass
from typing import Any, Literal

from ckptstore.errors import Busy, CatalogUnavailable, CkptStoreError, InvalidInput
from ckptstore.paths import new_id
from ckptstore.wire import Abort, AttemptOpened, AttemptStatus, OpenAttempt
from ckptstore_client.connection import Connection, is_loss
from ckptstore_client.process_group import Membership, ProcessGroup
from ckptstore_client.staging import StagedState, Staging
from ckptstore_client.transport import Transport

OnBusy = Literal["wait", "skip", "fail"]
#: With on_busy="wait", how long to wait for a slot before the save fails as Busy: the daemon's own patience with an attempt.
BUSY_TIMEOUT_S = 600.0
#: The daemon mostly holds the request itself while it waits for a slot; where it answers at once, this paces the next one.
_BUSY_PAUSE_S = 0.25


@dataclass(frozen=True)
class SaveRequest:
    """What the user asked for, checked."""

    path: str
    step: int | None
    replace: bool
    metadata: dict[str, Any]
    on_busy: OnBusy

    def message(self, member: Membership, size_bytes: int) -> OpenAttempt:
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


class Saver:
    def __init__(self, connection: Connection, staging: Staging, group: ProcessGroup) -> None:
        self._connection = connection
        self._staging = staging
        self.group = group

    def save(self, request: SaveRequest, state: Any, rank: int | None, world_size: int | None) -> tuple[AttemptOpened, dict[str, float]]:
        """The attempt, joined and handed over (or skipped), and how long each step took, in seconds."""
        begin = time.perf_counter()
        member = self.group.next_save(request.path, rank, world_size)
        try:
            staged = self._staging.plan(state)
        except CkptStoreError as error:
            self._tell_the_others(request, member, error)
            raise
        planned = time.perf_counter()
        transport, opened = self._open(request, member, staged)
        granted = copied = time.perf_counter()
        if not opened.skipped:
            self._hand_over(transport, opened, member, staged)
            copied = time.perf_counter()
        return opened, {"plan": planned - begin, "open": granted - planned, "copy": copied - granted, "stall": copied - begin}

    def _open(self, request: SaveRequest, member: Membership, staged: StagedState) -> tuple[Transport, AttemptOpened]:
        """Join the attempt; while no slot is free, or the catalog is locked, wait or skip as was asked for."""
        message = request.message(member, staged.size_bytes)
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                return self._connection.run(lambda transport: (transport, transport.api.call("POST", "attempts", AttemptOpened, message)))
            except (Busy, CatalogUnavailable) as error:
                if request.on_busy == "skip" and isinstance(error, CatalogUnavailable):
                    self._tell_the_others(request, member, error)
                    # The id is nobody's: nothing was joined. Waiting for it says that there will be no checkpoint, as for any skip.
                    return self._connection.transport(), AttemptOpened(attempt_id=new_id(), skipped=True)
                if request.on_busy != "wait":
                    raise
                if time.monotonic() > deadline:
                    self._tell_the_others(request, member, error)
                    raise
            time.sleep(_BUSY_PAUSE_S)

    def _hand_over(self, transport: Transport, opened: AttemptOpened, member: Membership, staged: StagedState) -> None:
        try:
            transport.hand_over(opened, member.rank, staged, self._staging)
        except BaseException as error:
            if isinstance(error, CkptStoreError) and is_loss(error):
                self._connection.lost(transport)  # the daemon aborts what a lost session had joined
            else:
                abort_quietly(transport, opened.attempt_id, f"rank {member.rank} failed: {error!s:.500}")
            raise

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


def abort_quietly(transport: Transport, attempt_id: str, reason: str) -> None:
    """The caller has an error to raise already; one more, of the abort, would only hide it. The daemon's expiry is the safety net."""
    with contextlib.suppress(CkptStoreError):
        transport.api.call("POST", f"attempts/{attempt_id}/abort", AttemptStatus, Abort(reason=reason[:1000]))


def checked_timeout(timeout_s: float | None, operation: str) -> None:
    if timeout_s is not None and not (timeout_s >= 0 and math.isfinite(timeout_s)):
        raise InvalidInput("timeout_s is a number of seconds, 0 or more, or None", operation=operation, subject=str(timeout_s))
