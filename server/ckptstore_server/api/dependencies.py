"""What routes take from a request: the services, and the caller's session."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Request

from ckptstore.errors import InvalidInput
from ckptstore.paths import is_id
from ckptstore.wire import LONG_POLL_S, SESSION_HEADER
from ckptstore_server.services import Services


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _is_local(request: Request) -> bool:
    local: bool = request.app.state.local
    return local


TheServices = Annotated[Services, Depends(_services)]
IsLocal = Annotated[bool, Depends(_is_local)]


async def _session(services: TheServices, session: Annotated[str | None, Header(alias=SESSION_HEADER)] = None) -> str:
    return services.sessions.use(session)


TheSession = Annotated[str, Depends(_session)]


def check_id(text: str) -> str:
    """An id from a URL, refused by name unless it has an id's form."""
    if not is_id(text):
        raise InvalidInput("an id is 32 hexadecimal digits", operation="read id", subject=repr(text[:80]))
    return text


def bounded_wait(timeout_s: float) -> float:
    """Seconds that this request may wait: never longer than one long poll."""
    if not 0.0 <= timeout_s < float("inf"):
        raise InvalidInput("timeout_s must be a number of seconds, 0 or more", operation="wait", subject=str(timeout_s))
    return min(timeout_s, LONG_POLL_S)
