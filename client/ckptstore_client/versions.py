"""What is to be done when the daemon that answers is of another version than this client?

Both say their version before anything else, and refuse each other by it. An older daemon that a client started by itself, and that nobody
uses, makes way: it is told to stop, which loses nothing that it was handed, and its successor is of this client's version. One that
somebody started on purpose, or that has clients, is left alone, and the error says how to restart it. A newer one is never stopped.

Nothing here is kept; any thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from ckptstore import __version__
from ckptstore.errors import DaemonUnavailable, VersionMismatch
from ckptstore.wire import API_VERSION, Hello, Message
from ckptstore_client.api import Api
from ckptstore_client.descriptors import RESTART


class _Use(Message):
    """What of `Status` every version has."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    hello: Hello
    sessions: int
    attempts: list[Any]
    stopping: bool


class _Stopping(Message):
    """What POST /v1/stop answers."""

    state: str


def greeted(api: Api) -> Hello:
    """The daemon's greeting, if it speaks this client's version; else VersionMismatch."""
    said = api.call("GET", "hello", Hello)
    if said.api == API_VERSION:
        return said
    its, ours = f"the daemon (ckptstore {said.version}, pid {said.pid})", f"this client (ckptstore {__version__})"
    hint = RESTART if said.api < API_VERSION else f"install ckptstore {said.version} here, too; or {RESTART}"
    why = f"{its} speaks version {said.api}, {ours} {API_VERSION}"
    raise VersionMismatch(why, operation="connect", subject=api.place, hint=hint)


def leaves(api: Api) -> bool:
    """Whether a daemon of another version is about to leave; asked to, if it is an older one that a client started and that nobody uses."""
    try:
        use = api.call("GET", "status", _Use)
        if use.stopping:
            return True
        if use.hello.api >= API_VERSION or use.sessions or use.attempts or not _was_auto_started(use.hello.pid):
            return False
        api.call("POST", "stop", _Stopping)
    except DaemonUnavailable:  # it has left
        return True
    return True


def _was_auto_started(pid: int) -> bool:
    """As its command line says, which it does in every version. False where its process cannot be seen from here."""
    try:
        return b"--auto-started" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
