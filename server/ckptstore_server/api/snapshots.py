"""Routes of snapshots that somebody asks a running job for."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from ckptstore.snapshot_messages import MAX_GRACE_S, AskSnapshot, RankHold, SnapshotAgreement, SnapshotInfo, SnapshotRequests
from ckptstore.wire import Text
from ckptstore_server.api.dependencies import TheServices, TheSession, bounded_wait, check_id

router = APIRouter(prefix="/v1/snapshots", tags=["snapshots"])


@router.post("")
async def ask(services: TheServices, message: AskSnapshot) -> SnapshotInfo:
    """Ask whoever saves in a folder for a checkpoint at its next safe point."""
    return await services.snapshots.ask(message)


@router.get("")
async def following(
    services: TheServices,
    session: TheSession,
    path: Text,
    token: Text = "",
    after: Annotated[int, Query(ge=0, lt=1 << 63)] = 0,
    grace_s: Annotated[float, Query(ge=0, le=MAX_GRACE_S)] = 0.0,
    timeout_s: float = 0.0,
) -> SnapshotRequests:
    """Of a job's ranks: what is asked of them. A daemon that is told to end stays for them, `grace_s` at most."""
    wait_s = bounded_wait(timeout_s)
    return await services.snapshots.following(path, token, after, wait_s, session=session, grace_s=grace_s)


@router.get("/{request_id}")
async def info(
    services: TheServices, request_id: str, until: Literal["heard", "answered"] = "answered", timeout_s: float = 0.0
) -> SnapshotInfo:
    return await services.snapshots.info(check_id(request_id), until, bounded_wait(timeout_s))


@router.post("/{request_id}/ranks")
async def hold(services: TheServices, request_id: str, message: RankHold) -> SnapshotAgreement:
    """A rank says how far it goes without knowing more."""
    return await services.snapshots.hold(check_id(request_id), message)


@router.get("/{request_id}/agreement")
async def agreement(services: TheServices, request_id: str, token: Text, timeout_s: float = 0.0) -> SnapshotAgreement:
    return await services.snapshots.agreement(check_id(request_id), token, bounded_wait(timeout_s))
