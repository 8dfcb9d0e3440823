"""Asking a running job for a checkpoint: `store.snapshot(folder)`. How the job heeds it is told in `preemption`."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from ckptstore.errors import WaitTimeout
from ckptstore.paths import check_folder
from ckptstore.snapshot_messages import AskSnapshot, SnapshotInfo
from ckptstore.wire import LONG_POLL_S
from ckptstore_client.api import Api
from ckptstore_client.saving import checked_timeout
from ckptstore_client.waiting import Ask

_HINT = "a job heeds it that saves in this folder and calls `store.preemption`"
#: How long to wait for a job to hear of it when nothing else is waited for, in seconds.
HEARD_S = 3.0


def ask_for_snapshot(ask: Ask, folder: str, *, why: str, wait: bool, timeout_s: float | None) -> SnapshotInfo:
    """As `Store.snapshot`."""
    checked_timeout(timeout_s, "snapshot")
    message = AskSnapshot(path=check_folder(folder, operation="snapshot"), why=why)
    info: SnapshotInfo = ask(lambda api: api.call("POST", "snapshots", SnapshotInfo, message))
    look = partial(_look, request_id=info.request_id, until="answered" if wait else "heard")
    if not wait:
        found: SnapshotInfo = ask(partial(look, timeout_s=HEARD_S))
        return found
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while info.state == "asked":
        left_s = LONG_POLL_S if deadline is None else deadline - time.monotonic()
        if left_s <= 0:
            heard = f"{info.ranks} ranks have heard of it" if info.ranks else "no job has heard of it"
            raise WaitTimeout(f"no checkpoint after {timeout_s:g} s ({heard})", operation="snapshot", subject=folder, hint=_HINT)
        info = ask(partial(look, timeout_s=min(left_s, LONG_POLL_S)))
    if info.state == "expired":
        raise WaitTimeout("it is too late: nothing was saved there in time", operation="snapshot", subject=folder, hint=_HINT)
    return info


def _look(api: Api, *, request_id: str, **given: Any) -> SnapshotInfo:
    return api.call("GET", f"snapshots/{request_id}", SnapshotInfo, **given)
