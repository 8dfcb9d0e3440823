"""Which daemon does this process talk to right now? One transport, opened when it is first needed, and again when it was lost.

Lost means: the daemon was restarted (it does not know the session), went away, or this process is a forked child, which must not
touch its parent's sockets. A request that may be repeated is repeated once on the new connection; everything else is told, and
the next call connects anew.

Thread-safe. After a fork the child starts from nothing: new locks, new session, new token (`on_new_process`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import TypeVar

from ckptstore.errors import CkptStoreError, DaemonUnavailable, Unauthorized
from ckptstore_client.transport import Transport

Result = TypeVar("Result")


class Connection:
    def __init__(self, open_transport: Callable[[], Transport]) -> None:
        self._open = open_transport
        self._lock = threading.RLock()
        self._transport: Transport | None = None
        self._closed = False
        #: transports of the parent, kept so that nothing in them is finalised here
        self._abandoned: list[Transport] = []
        self.on_loss: Callable[[], None] = lambda: None
        self.on_new_process: Callable[[], None] = lambda: None
        _live.add(self)

    @property
    def closed(self) -> bool:
        """Whether the store was closed, for ever."""
        return self._closed

    def transport(self) -> Transport:
        """The present transport, opened if need be. DaemonUnavailable."""
        with self._lock:
            if self._closed:
                raise DaemonUnavailable("this store was closed", operation="use store", hint="connect again")
            if self._transport is not None and not self._transport.alive:
                self._drop(self._transport)
            if self._transport is None:
                self._transport = self._open()
            return self._transport

    def run(self, request: Callable[[Transport], Result]) -> Result:
        """`request`, which must be safe to repeat: once more on a new connection, if the present one turns out to be lost."""
        transport = self.transport()
        try:
            return request(transport)
        except (DaemonUnavailable, Unauthorized) as error:
            if not is_loss(error):
                raise
            self.lost(transport)
        return request(self.transport())

    def lost(self, transport: Transport) -> None:
        """The next call opens a new one. Nothing happens if another thread has done so already."""
        with self._lock:
            if self._transport is transport:
                self._drop(transport)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._transport is not None:
                self._drop(self._transport)

    def _drop(self, transport: Transport) -> None:
        self._transport = None
        with contextlib.suppress(CkptStoreError):
            transport.close()
        self.on_loss()

    def _after_fork_in_child(self) -> None:
        self._lock = threading.RLock()
        if self._transport is not None:
            self._transport.abandon()
            self._abandoned.append(self._transport)
            self._transport = None
        self.on_new_process()


def is_loss(error: CkptStoreError) -> bool:
    """Whether the connection or its session is gone, rather than that the daemon refused something."""
    return isinstance(error, DaemonUnavailable) or (isinstance(error, Unauthorized) and error.operation == "use session")


_live: weakref.WeakSet[Connection] = weakref.WeakSet()


def _let_go_in_child() -> None:
    for connection in list(_live):
        connection._after_fork_in_child()


os.register_at_fork(after_in_child=_let_go_in_child)
