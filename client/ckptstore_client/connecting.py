"""Where is the store? This node's daemon, started if none answers, or a daemon behind a URL; and the default store of the
module's functions.

Arguments win over the environment (CKPTSTORE_URL, CKPTSTORE_TOKEN or CKPTSTORE_TOKEN_FILE, CKPTSTORE_HOME, CKPTSTORE_GROUP). Of
the configuration file the client reads only where the home and its sockets are. The default store is made at its first use, once
per process, under a lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from ckptstore.errors import ConfigInvalid, InvalidInput
from ckptstore_client.local import LocalTransport
from ckptstore_client.pending import PendingCheckpoint
from ckptstore_client.remote import RemoteTransport
from ckptstore_client.store import Store
from ckptstore_client.transport import Transport

#: Long enough for a daemon that starts on a busy node and rolls its queue forward.
START_TIMEOUT_S = 60.0

_default: Store | None = None
_lock = threading.Lock()


def connect(
    url: str | None = None,
    *,
    token: str | None = None,
    home: str | Path | None = None,
    group: str | None = None,
    start: bool = True,
    timeout_s: float = START_TIMEOUT_S,
) -> Store:
    """The store of this node's daemon, or with `url` ("http://host:8900", https for TLS) of another node's.

    `start`: whether to start a daemon when none answers on this node. `group`: a random string that all ranks of this incarnation
    of a job share, for programs without torch.distributed. `timeout_s`: how long to wait for a connection, and for a daemon that
    is being started. DaemonUnavailable, Unauthorized.
    """
    if not timeout_s > 0:
        raise InvalidInput(f"timeout_s is a number of seconds above 0, not {timeout_s!r}", operation="connect")
    url = url or (None if home is not None else os.environ.get("CKPTSTORE_URL")) or None
    store = Store(_opener(url, token, home, start, timeout_s), group=group or os.environ.get("CKPTSTORE_GROUP") or None)
    try:
        store.hello()
    except BaseException:
        store.close()
        raise
    return store


def _opener(url: str | None, token: str | None, home: str | Path | None, start: bool, timeout_s: float) -> Callable[[], Transport]:
    if url is None:
        place = None if home is None else Path(home).expanduser().absolute()
        return lambda: LocalTransport(place, start=start, timeout_s=timeout_s)
    checked = _checked_url(url)
    secret = token or _token_from_environment()
    return lambda: RemoteTransport(checked, secret, timeout_s=timeout_s)


def _checked_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise InvalidInput(f"this is no URL: {error}", operation="connect", subject=str(url)[:200]) from error
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo or parsed.query:
        raise InvalidInput(
            "a URL here is http://host:port or https://host:port", operation="connect", subject=f"{parsed.scheme}://{parsed.host}"
        )
    return str(parsed)


def _token_from_environment() -> str | None:
    token, file = os.environ.get("CKPTSTORE_TOKEN"), os.environ.get("CKPTSTORE_TOKEN_FILE")
    if token or not file:
        return token or None
    try:
        return Path(file).read_text("utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"the token cannot be read: {error}", operation="connect", subject=file) from error


def default_store() -> Store:
    """The store of `ckptstore.save` and `ckptstore.load`."""
    global _default
    with _lock:
        if _default is None:
            _default = connect()
        return _default


def save(path: str, state: Any, **options: Any) -> PendingCheckpoint:
    """`Store.save` on the default store."""
    return default_store().save(path, state, **options)


def load(path: str, *, into: Any = None, only: str | Sequence[str] | None = None, rank: int | None = None, **options: Any) -> Any:
    """`Store.load` on the default store."""
    return default_store().load(path, into=into, only=only, rank=rank, **options)


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
