"""Routes of a save or a put: open, hand over or stream, commit, abort, wait."""

from __future__ import annotations

from fastapi import APIRouter, Request

from ckptstore.errors import InvalidInput
from ckptstore.wire import Abort, AttemptOpened, AttemptStatus, BundleStored, FileStored, HandOver, OpenAttempt, SessionOpened
from ckptstore_server.api.dependencies import TheServices, TheSession, bounded_wait, check_id
from ckptstore_server.small_files import check_size
from ckptstore_server.spool import spool_body, whole_body

router = APIRouter(prefix="/v1", tags=["attempts"])


@router.post("/sessions")
async def open_session(services: TheServices) -> SessionOpened:
    """For clients over TCP. A session ends when nothing is heard of it for `attempt_timeout_s`."""
    return SessionOpened(session=services.sessions.open_remote())


@router.post("/attempts")
async def open_attempt(services: TheServices, session: TheSession, message: OpenAttempt) -> AttemptOpened:
    return await services.attempts.open(message, session=session)


@router.post("/attempts/{attempt_id}/ranks/{rank}/handover")
async def hand_over(services: TheServices, session: TheSession, attempt_id: str, rank: int, message: HandOver) -> AttemptStatus:
    return await services.attempts.hand_over(check_id(attempt_id), rank, message, session=session)


@router.put("/attempts/{attempt_id}/ranks/{rank}/body")
async def put_body(services: TheServices, session: TheSession, attempt_id: str, rank: int, request: Request) -> AttemptStatus:
    """A rank's whole file, streamed into the slot that opening the attempt granted; then handed over."""
    return await services.attempts.receive(check_id(attempt_id), rank, content_length(request), request.stream(), session=session)


@router.put("/attempts/{attempt_id}/files")
async def put_file(services: TheServices, session: TheSession, attempt_id: str, name: str, request: Request) -> FileStored:
    """One file of a put, streamed."""
    await services.attempts.expect_file(check_id(attempt_id), name)
    async with spool_body(services.node, request.stream(), content_length(request)) as source:
        return await services.attempts.store_file(check_id(attempt_id), name, source)


@router.put("/attempts/{attempt_id}/bundle")
async def put_bundle(services: TheServices, session: TheSession, attempt_id: str, request: Request) -> BundleStored:
    """Many small files of a put at once."""
    message = await whole_body(request.stream(), check_size(content_length(request)))
    return await services.small_files.store(check_id(attempt_id), message)


@router.post("/attempts/{attempt_id}/commit")
async def commit(services: TheServices, session: TheSession, attempt_id: str) -> AttemptStatus:
    return await services.attempts.commit(check_id(attempt_id))


@router.post("/attempts/{attempt_id}/abort")
async def abort(services: TheServices, session: TheSession, attempt_id: str, message: Abort) -> AttemptStatus:
    return await services.attempts.abort(check_id(attempt_id), message.reason, session=session)


@router.get("/attempts/{attempt_id}")
async def attempt(services: TheServices, attempt_id: str, wait: str | None = None, timeout_s: float = 0.0) -> AttemptStatus:
    return await services.attempts.status(check_id(attempt_id), wait=wait, timeout_s=bounded_wait(timeout_s))


def content_length(request: Request) -> int:
    """Bytes of the body that follows; a body of unknown length is refused, since room is reserved before it is read."""
    length = request.headers.get("content-length", "")
    if not length.isdigit():
        raise InvalidInput("a body needs a Content-Length", operation="PUT", subject=request.url.path)
    return int(length)
