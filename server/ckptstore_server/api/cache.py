"""Routes of the node's copies: what is kept, what stays, what goes, what is fetched ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from ckptstore.cache_messages import CachedModels, Evicted, Pinned, WarmLine
from ckptstore.wire import CacheStatus, Text
from ckptstore_server.api.dependencies import TheServices

router = APIRouter(prefix="/v1/cache", tags=["cache"])


@router.get("")
async def status(services: TheServices) -> CacheStatus:
    return await asyncio.to_thread(services.cache_control.status)


@router.get("/models")
async def models(services: TheServices) -> CachedModels:
    """What is kept of each model, and what that was good for; what was used last comes first."""
    return await asyncio.to_thread(services.cache_control.models)


@router.post("/warm")
async def warm(services: TheServices, path: Text, pin: bool = False, check: bool = False, wait: bool = True) -> StreamingResponse:
    """Fetch every file at or below a path, and tell of each; `check`: only say how much of each is here."""
    found = await services.tree.look(path, resolve=True)  # refused before the answer begins
    if not wait and not check:
        services.warmer.begin(found.path, pin=pin)

    async def lines() -> AsyncIterator[bytes]:
        if not wait and not check:
            yield WarmLine(path=found.path, begun=True).model_dump_json().encode() + b"\n"
            return
        async for line in services.warmer.warm(found.path, pin=pin, check=check):
            yield line.model_dump_json().encode() + b"\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.put("/pins")
async def pin(services: TheServices, path: Text) -> Pinned:
    """Have what is at or below a path stay, once it is here. It need not be here yet."""
    return await asyncio.to_thread(services.cache_control.pin, path)


@router.delete("/pins")
async def unpin(services: TheServices, path: Text) -> Pinned:
    return await asyncio.to_thread(services.cache_control.unpin, path)


@router.delete("/copies")
async def evict(services: TheServices, path: Text) -> Evicted:
    """Give up the copies at or below a path, unless they are pinned. What is evicted can be had again from where it lies."""
    return await asyncio.to_thread(services.cache_control.evict, path)
