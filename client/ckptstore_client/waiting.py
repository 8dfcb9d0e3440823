"""What does a wait say that has run out of time? Where the checkpoint is by now, and what the daemon knows of the tier that lacks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ckptstore.errors import CkptStoreError, InvalidInput, WaitTimeout
from ckptstore.wire import Status
from ckptstore_client.api import Api

#: Runs a request on the store's present connection, and again on a new one if that was lost.
Ask = Callable[[Callable[[Api], Any]], Any]


#: Stages that are no tiers: every rank has handed over; it is visible to everybody.
SNAPSHOT, PUBLISHED = "snapshot", "published"


def checked_stage(stage: str, durable_tiers: Callable[[], list[str]], subject: str) -> list[str]:
    """The tiers that can be waited for, if `stage` is one of them or "snapshot", which needs none; else InvalidInput."""
    if stage == SNAPSHOT:
        return []
    known = durable_tiers()
    if stage not in known:
        hint = f"known are: {', '.join([SNAPSHOT, *known])}"
        raise InvalidInput(f"there is no durable tier {stage!r}", operation="wait", subject=subject, hint=hint)
    return known


def not_yet(ask: Ask, subject: str, tier: str, timeout_s: float | None, where: str) -> WaitTimeout:
    """The error of a wait for `tier`, or a stage; `where` says what holds it."""
    why = f"not {tier if tier == PUBLISHED else f'in {tier}'} after {timeout_s:g} s ({where})"
    hint = "it goes on; wait longer, or see ckptstore status"
    try:
        status: Status = ask(lambda api: api.call("GET", "status", Status))
    except CkptStoreError:
        return WaitTimeout(why, operation="wait", subject=subject, tier=tier, hint=hint)
    known = next((line for line in status.tiers if line.name == tier), None)
    if known is not None and known.last_error:
        why += f"; its last error: {known.last_error}"
    if known is not None and known.state != "ok":
        why += f"; the tier is {known.state}"
    return WaitTimeout(why, operation="wait", subject=subject, tier=tier, hint=hint)
