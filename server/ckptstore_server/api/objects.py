"""Routes of objects: where the bytes are, the bytes themselves, and reports of damage."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import Response, StreamingResponse

from ckptstore.wire import Damage, FileInfo, Located, Objects
from ckptstore_server.api.dependencies import TheServices, check_id

router = APIRouter(prefix="/v1", tags=["objects"])


@router.post("/objects/contents")
async def contents(services: TheServices, message: Objects) -> Response:
    """Many small objects at once, as a bundle by id; those that cannot be read from a file near by are left out."""
    bundle = await services.small_reads.bundle([check_id(object_id) for object_id in message.object_ids])
    return Response(bundle, media_type="application/octet-stream")


@router.get("/objects/{object_id}")
async def look_up(services: TheServices, object_id: str) -> FileInfo:
    """What there is to know of an object, whichever checkpoint it came with: a load needs it for what that refers to."""
    return await services.namespace.object(check_id(object_id))


@router.get("/objects/{object_id}/replicas")
async def locate(services: TheServices, object_id: str, recall: bool = True) -> Located:
    """Where it is. What nobody here can open is recalled, unless only a part of it is wanted."""
    return await services.recall.locate(check_id(object_id), recall=recall)


@router.get("/objects/{object_id}/content")
async def content(
    services: TheServices, object_id: str, recall: bool = True, range_: Annotated[str | None, Header(alias="range")] = None
) -> StreamingResponse:
    """The object's bytes, or one range of them; each block is verified before it is sent. Without `recall`, of what is far away just
    these are fetched, into the node's cache."""
    stream = await services.content.open(check_id(object_id), range_, recall=recall)
    return StreamingResponse(stream.chunks(), status_code=stream.status, headers=stream.headers, media_type="application/octet-stream")


@router.post("/objects/{object_id}/damage")
async def damage(services: TheServices, object_id: str, message: Damage) -> Located:
    """A reader found a bad block: checked here, and if it is bad, the replica is taken out of use and replaced."""
    await services.verifier.reported(check_id(object_id), message)
    return await services.recall.locate(object_id)
