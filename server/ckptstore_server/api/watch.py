"""The route by which programs hear of what is published, as it happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from ckptstore.wire import Text
from ckptstore_server.api.dependencies import TheServices
from ckptstore_server.watching import checked

router = APIRouter(prefix="/v1/watch", tags=["watch"])


@router.get("")
async def watch(services: TheServices, path: Text = "/", since: Annotated[int | None, Query(ge=0, lt=1 << 63)] = None) -> StreamingResponse:
    """Server-sent events: what is published at or below a path, and which tiers come to hold it. Without end."""
    folder = checked(path)  # refused before the answer begins

    async def events() -> AsyncIterator[bytes]:
        async for event in services.watching.watch(folder, since):
            if event is None:
                yield KEEPALIVE_COMMENT
            else:
                yield format_sse_event(data_str=event.model_dump_json(), event=event.event, id=str(event.sequence))

    return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-cache"})
