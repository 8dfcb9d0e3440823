"""The route by which programs hear of what is published, as it happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from ckptstore.wire import Text
from ckptstore_server.api.dependencies import TheServices
from ckptstore_server.watching import checked

router = APIRouter(prefix="/v1/watch", tags=["watch"])


def _path(path: Text = "/") -> str:
    """Refused before the answer begins."""
    return checked(path)


@router.get("", response_class=EventSourceResponse)
async def watch(
    services: TheServices, path: Annotated[str, Depends(_path)], since: Annotated[int | None, Query(ge=0, lt=1 << 63)] = None
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: what is published at or below a path, and which tiers come to hold it."""
    async for event in services.watching.watch(path, since):
        yield ServerSentEvent(raw_data=event.model_dump_json(), event=event.event, id=str(event.sequence))
