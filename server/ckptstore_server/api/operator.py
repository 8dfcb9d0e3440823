"""Routes for operators: hello, status, verify, metrics, stop."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, StreamingResponse

from ckptstore.errors import Unauthorized
from ckptstore.wire import Hello, Status
from ckptstore_server import metrics, status
from ckptstore_server.api.dependencies import IsLocal, TheServices

router = APIRouter(tags=["operator"])


@router.get("/v1/hello")
async def hello(services: TheServices) -> Hello:
    return await services.node.query(status.hello, services.node)


@router.get("/v1/status")
async def full_status(services: TheServices) -> Status:
    return await status.collect(services)


@router.post("/v1/verify")
async def verify(services: TheServices, path: str = "/") -> StreamingResponse:
    """One JSON line per replica, while they are read again; the last line sums up."""
    found = await services.namespace.stat(path)  # refused before the answer begins; and `@latest` is somewhere

    async def lines() -> AsyncIterator[bytes]:
        async for line in services.verifier.verify(found.path):
            yield line.model_dump_json().encode() + b"\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.post("/v1/stop", status_code=202)
async def stop(services: TheServices, local: IsLocal) -> dict[str, str]:
    if not local:
        raise Unauthorized("a daemon is stopped from its own node", operation="stop", hint="run `ckptstore stop` there")
    services.request_stop()
    return {"state": "stopping"}


@router.get("/metrics")
async def prometheus(services: TheServices) -> PlainTextResponse:
    return PlainTextResponse(await metrics.render(services), media_type="text/plain; version=0.0.4")


@router.get("/healthz")
async def health() -> PlainTextResponse:
    return PlainTextResponse("ok\n")
