"""Routes of keeping: policies, holds, and the trash."""

from __future__ import annotations

from fastapi import APIRouter

from ckptstore.retention_messages import (
    HoldInfo,
    HoldList,
    HoldPath,
    Restored,
    RetentionList,
    RetentionPlan,
    SetRetention,
    TrashList,
    UndoPath,
)
from ckptstore.wire import Removed, Text
from ckptstore_server.api.dependencies import TheServices

router = APIRouter(prefix="/v1", tags=["retention"])


@router.post("/retention")
async def keep(services: TheServices, message: SetRetention, dry_run: bool = False) -> RetentionPlan:
    """Judge a folder's checkpoints by these policies; `dry_run`: only say what would go."""
    return await services.keeper.set(message, dry_run=dry_run)


@router.get("/retention")
async def kept(services: TheServices) -> RetentionList:
    return await services.keeper.all()


@router.delete("/retention")
async def keep_everything(services: TheServices, path: Text, tier: Text | None = None) -> RetentionList:
    """Forget a folder's policies, or those of one tier; `tier` empty: those of all tiers that have none of their own."""
    return await services.keeper.clear(path, tier)


@router.post("/holds")
async def hold(services: TheServices, message: HoldPath) -> HoldInfo:
    """Let nobody remove or replace what is at a path."""
    return await services.keeper.hold(message)


@router.get("/holds")
async def holds(services: TheServices) -> HoldList:
    return await services.keeper.holds()


@router.delete("/holds")
async def release(services: TheServices, path: Text) -> HoldInfo:
    return await services.keeper.release(path)


@router.get("/trash")
async def trash(services: TheServices) -> TrashList:
    return await services.keeper.trashed()


@router.post("/trash/undo")
async def undo(services: TheServices, message: UndoPath) -> Restored:
    """Put back what was last thrown away from a path, and hold it."""
    return await services.keeper.undo(message.path)


@router.delete("/trash")
async def empty_trash(services: TheServices, everything: bool = False) -> Removed:
    """Remove for good what has waited long enough, or everything."""
    return await services.keeper.empty_trash(everything=everything)
