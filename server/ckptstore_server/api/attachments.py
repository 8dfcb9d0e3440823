"""Routes of attached storage: show it, show it no longer, and what is shown where."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from ckptstore.errors import Unauthorized
from ckptstore.tree_messages import AttachmentInfo, AttachmentList, AttachStorage
from ckptstore.wire import Text
from ckptstore_server.api.dependencies import IsLocal, TheServices

router = APIRouter(prefix="/v1/attachments", tags=["attachments"])


@router.post("")
async def attach(services: TheServices, local: IsLocal, message: AttachStorage) -> AttachmentInfo:
    """Only on the daemon's own node: what is attached is read with the daemon's rights and credentials."""
    _require_local(local, "attach", message.path)
    attached = await services.attached.attach(message)
    await asyncio.gather(services.changes.told(), services.attachments_records.soon())
    return attached


@router.delete("")
async def detach(services: TheServices, local: IsLocal, path: Text) -> AttachmentInfo:
    _require_local(local, "detach", path)
    detached = await services.attached.detach(path)
    await asyncio.gather(services.changes.told(), services.attachments_records.soon())
    return detached


@router.get("")
async def attachments(services: TheServices) -> AttachmentList:
    return AttachmentList(attachments=await services.attached.all())


def _require_local(local: bool, operation: str, path: str) -> None:
    if not local:
        raise Unauthorized("only the daemon's own node may do that", operation=operation, subject=path, hint="use its unix socket")
