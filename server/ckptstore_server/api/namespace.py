"""Routes of the namespace: what is published where, and removing it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from ckptstore.tag_messages import Tag
from ckptstore.wire import EntryInfo, EntryPage, FilePage, Move, Moved, PublicationInfo, Removed, Text, Usage
from ckptstore_server.api.dependencies import TheServices, bounded_wait, check_id

router = APIRouter(prefix="/v1", tags=["namespace"])

Limit = Annotated[int, Query(ge=1, le=10_000)]
Rank = Annotated[int | None, Query(ge=0, lt=1 << 20)]


@router.get("/publications")
async def resolve(services: TheServices, path: str) -> PublicationInfo:
    """What is published at a path; `…/@latest` is the newest checkpoint of a folder."""
    return await services.namespace.resolve(path)


@router.get("/publications/{publication_id}")
async def publication(services: TheServices, publication_id: str, wait: str | None = None, timeout_s: float = 0.0) -> PublicationInfo:
    return await services.namespace.publication(check_id(publication_id), wait=wait, timeout_s=bounded_wait(timeout_s))


@router.post("/publications/{publication_id}/drain-first")
async def drain_first(services: TheServices, publication_id: str) -> PublicationInfo:
    """Nothing is drained before it from now on: somebody's time is short."""
    return await services.namespace.drain_first(check_id(publication_id))


@router.get("/publications/{publication_id}/files")
async def files(
    services: TheServices, publication_id: str, rank: Rank = None, name: Text | None = None, after: Text = "", limit: Limit = 1000
) -> FilePage:
    return await services.namespace.files(check_id(publication_id), rank=rank, name=name, after=after, limit=limit)


@router.get("/entries")
async def entries(services: TheServices, path: str = "/", after: Text = "", limit: Limit = 1000) -> EntryPage:
    return await services.namespace.list(path, after=after, limit=limit)


@router.get("/entry")
async def entry(services: TheServices, path: str) -> EntryInfo:
    return await services.namespace.stat(path)


@router.get("/usage")
async def usage(services: TheServices, path: str = "/") -> Usage:
    return await services.namespace.usage(path)


@router.delete("/entries")
async def remove(services: TheServices, path: str, recursive: bool = False) -> Removed:
    removed = await services.namespace.remove(path, recursive=recursive)
    await services.changes.told()
    await services.deletion.soon()
    return removed


@router.post("/entries/move")
async def move(services: TheServices, message: Move) -> Moved:
    """Another path for what is published at one, in one transaction."""
    moved = await services.namespace.move(message)
    await services.changes.told()
    await services.publisher.soon()  # the new records first, then the tombstones of what it replaced
    await services.deletion.soon()
    await services.models.arrived(moved.moved)
    return moved


@router.post("/entries/tag")
async def tag(services: TheServices, message: Tag) -> PublicationInfo:
    """Say something else about what is published, in one transaction."""
    tagged = await services.namespace.tag(message)
    await services.changes.told()
    await services.publisher.soon()  # a catalog that is lost right after this comes back with it
    return tagged
