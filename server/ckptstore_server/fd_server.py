"""The socket that lends descriptors: who is at the other end, for how long it lives, and what it may ask.

One thread a connection: a node has a few ranks and readers, and each waits in the kernel, not in a loop. A client keeps its connection
for life; its end, for whatever reason, is reported once as `disconnected`, and that is how the daemon learns of a client's death. A
client that sends garbage, stops reading or hangs up in the middle ends its own connection and nothing else.

Only the daemon's own user and root may connect (SO_PEERCRED; the socket's mode says the same). The handler runs in the connections'
threads, several at once. A descriptor that a handler returns is the server's: it is closed after it was sent, or could not be. So a
handler returns one made for this answer, a `dup` if need be; lending the pool's own would race with its being closed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from ckptstore import __version__, fd_protocol, sockets
from ckptstore.errors import Busy, CkptStoreError, InvalidInput, Unauthorized, VersionMismatch
from ckptstore.fd_messages import (
    FdAcquire,
    FdAttempt,
    FdFollow,
    FdHandOver,
    FdHello,
    FdIngest,
    FdOpen,
    FdOpened,
    FdReady,
    FdRelease,
    FdSegment,
    FdWelcome,
)
from ckptstore.paths import new_id
from ckptstore.tree_messages import FdFile, FdLook, FdLooked, FdNeed, FdOpenFile
from ckptstore.wire import API_VERSION, Message

_log = logging.getLogger(__name__)

#: struct ucred: pid, uid, gid.
_CREDENTIALS = struct.Struct("3i")

Answer = tuple[FdReady | FdAttempt | FdFile | FdLooked, int | None]

#: What may be asked, by the handler's method of that name. A file comes with INGEST, and with nothing else.
_QUESTIONS: dict[str, type[Message]] = {
    "acquire": FdAcquire,
    "opened": FdOpened,
    "release": FdRelease,
    "hand_over": FdHandOver,
    "segment": FdSegment,
    "open": FdOpen,
    "follow": FdFollow,
    "look": FdLook,
    "open_file": FdOpenFile,
    "need": FdNeed,
}
_INGEST = "ingest"
#: How a refusal is worded, where it is not an FdReady.
_REFUSALS: dict[str, type[FdAttempt | FdFile | FdLooked]] = {"opened": FdAttempt, "open_file": FdFile, "look": FdLooked}


class DescriptorHandler(Protocol):
    """What the daemon does for a session. A CkptStoreError becomes the answer's `error`.

    Calls for one session come one at a time, and all of them between its `connected` and its `disconnected`.
    """

    def connected(self, session: str, pid: int, uid: int) -> None: ...

    def disconnected(self, session: str) -> None:
        """The client is gone, or has ended its connection. Comes also after a `connected` that failed half way."""
        ...

    def acquire(self, session: str, message: FdAcquire) -> Answer:
        """A free slot, lent to this session from now on; Busy if there is none at this moment."""
        ...

    def answered(self, session: str) -> None:
        """The last answer is on its way to the client: what it need not wait for can begin."""
        ...

    def opened(self, session: str, message: FdOpened) -> Answer:
        """What came of the attempt that `acquire` named."""
        ...

    def release(self, session: str, message: FdRelease) -> Answer:
        """Take a lent slot back."""
        ...

    def hand_over(self, session: str, message: FdHandOver) -> Answer:
        """Own the bytes of a lent slot."""
        ...

    def segment(self, session: str, message: FdSegment) -> Answer:
        """A writable descriptor of a segment that is lent to this session; NotFound for any other."""
        ...

    def open(self, session: str, message: FdOpen) -> Answer:
        """A read-only descriptor of a replica."""
        ...

    def follow(self, session: str, message: FdFollow) -> Answer:
        """The reading end of a pipe that tells what of an arriving object can be read."""
        ...

    def look(self, session: str, message: FdLook) -> Answer:
        """What is at a path of the tree."""
        ...

    def open_file(self, session: str, message: FdOpenFile) -> Answer:
        """A read-only descriptor of the node's copy of a file of the tree; FdFile says which, and how much of it is there."""
        ...

    def need(self, session: str, message: FdNeed) -> Answer:
        """Once these bytes can be read from the copy's descriptor."""
        ...

    def ingest(self, session: str, message: FdIngest, fd: int) -> Answer:
        """Store the file; `fd` is the server's, and valid until this returns."""
        ...


class DescriptorServer:
    """Listens from `start` to `close`. AlreadyRunning if another daemon listens at `path`."""

    def __init__(
        self,
        path: Path,
        handler: DescriptorHandler,
        *,
        connection_limit: int = 1024,
        send_timeout_s: float = 10.0,
        line_timeout_s: float = fd_protocol.LINE_TIMEOUT_S,
        allowed_uids: frozenset[int] | None = None,
    ) -> None:
        self.path = path
        self._handler = handler
        self._connection_limit = connection_limit
        self._send_timeout_s = send_timeout_s
        self._line_timeout_s = line_timeout_s
        self._allowed_uids = frozenset({os.getuid(), 0}) if allowed_uids is None else allowed_uids
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._inode = 0
        self._acceptor = threading.Thread(target=self._accept_all, name="ckptstore-fd-accept", daemon=True)

    def start(self) -> None:
        self._listener = sockets.listen(self.path)
        self._inode = self.path.stat().st_ino
        self._acceptor.start()

    def close(self, *, grace_s: float = 10.0) -> None:
        """End all connections; requests that run get `grace_s` to end. The socket file goes, if it is still ours."""
        self._stopping.set()
        if self._listener is None:
            return
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the acceptor, which `close` alone would not
        self._acceptor.join(grace_s)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        with self._lock:
            connections = list(self._connections.items())
        for connection, _ in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for _, thread in connections:
            thread.join(grace_s)

    def __enter__(self) -> DescriptorServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def connection_count(self) -> int:
        with self._lock:
            return len(self._connections)

    # --- accepting -----------------------------------------------------------------------------------------------------------

    def _accept_all(self) -> None:
        assert self._listener is not None
        failing = False
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if not failing and not self._stopping.is_set():
                    _log.error("cannot accept on %s: %s", self.path, error)
                # Out of descriptors, most likely. The connection stays in the backlog: look again in a moment.
                failing = True
                self._stopping.wait(0.2)
                continue
            failing = False
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        connection.settimeout(self._send_timeout_s)
        refusal = self._refusal(connection)
        if refusal is not None:
            with connection:
                self._try_to_say(connection, refusal)
            return
        thread = threading.Thread(target=self._serve, args=(connection,), name="ckptstore-fd", daemon=True)
        with self._lock:
            self._connections[connection] = thread
        try:
            thread.start()
        except RuntimeError as error:
            _log.error("no thread for a connection: %s", error)
            connection.close()
            self._forget(connection)

    def _refusal(self, connection: socket.socket) -> CkptStoreError | None:
        _, uid = _peer(connection)
        if uid not in self._allowed_uids:
            return Unauthorized(
                f"this daemon serves users {', '.join(map(str, sorted(self._allowed_uids)))}, not {uid}",
                operation="connect",
                subject=str(self.path),
                hint="run your own daemon under your own CKPTSTORE_HOME",
            )
        if self.connection_count >= self._connection_limit:
            return Busy(f"{self._connection_limit} clients are connected", operation="connect", subject=str(self.path))
        return None

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.pop(connection, None)

    # --- one connection ------------------------------------------------------------------------------------------------------

    def _serve(self, connection: socket.socket) -> None:
        """The top of a connection's thread."""
        session = new_id()
        connected = False
        try:
            pid, uid = _peer(connection)
            self._greet(connection)
            connected = True  # also when `connected` fails half way: `disconnected` undoes what was done
            self._handler.connected(session, pid, uid)
            fd_protocol.send(connection, FdWelcome(session=session))
            while not self._stopping.is_set():
                self._answer_one(connection, session)
        except CkptStoreError as error:
            self._try_to_say(connection, error)
        except OSError:
            pass  # it hung up, or does not read: either way this connection has ended
        except Exception:  # noqa: BLE001 - the top of a thread
            _log.exception("session %s", session)
            self._try_to_say(connection, CkptStoreError("a fault in the daemon; its log says more", operation="answer"))
        finally:
            connection.close()
            if connected:
                self._say_goodbye(session)
            self._forget(connection)  # only now: who closes the server waits for the ends of the sessions that it knows

    def _say_goodbye(self, session: str) -> None:
        try:
            self._handler.disconnected(session)
        except Exception:  # noqa: BLE001 - the top of a thread
            _log.exception("session %s could not be ended", session)

    def _greet(self, connection: socket.socket) -> None:
        document, _ = fd_protocol.receive(connection, fd_limit=0, line_timeout_s=self._line_timeout_s)
        if document.get("op") == "hello" and document.get("api") != API_VERSION:  # whatever else such a client says
            why = f"the client speaks version {document.get('api')!s:.20}, this daemon {API_VERSION} (ckptstore {__version__})"
            hint = "install the same ckptstore on both sides, and restart the daemon: `ckptstore stop`"
            raise VersionMismatch(why, operation="connect", subject=str(self.path), hint=hint)
        fd_protocol.read_as(document, FdHello)

    def _answer_one(self, connection: socket.socket, session: str) -> None:
        """Wait for a request, however long; answer it. Raises what ends the connection."""
        connection.settimeout(None)
        document, fds = fd_protocol.receive(connection, line_timeout_s=self._line_timeout_s)
        try:
            ready, fd = self._handle(session, document, fds)
        except CkptStoreError as error:
            ready = _REFUSALS.get(str(document.get("op")), FdReady)(error=error.to_wire())
            fd = None
        finally:
            fd_protocol.close_all(fds)
        connection.settimeout(self._send_timeout_s)
        try:
            fd_protocol.send(connection, ready, () if fd is None else (fd,))
        finally:
            fd_protocol.close_all(() if fd is None else (fd,))
        self._handler.answered(session)

    def _handle(self, session: str, document: dict[str, Any], fds: list[int]) -> Answer:
        operation = document.get("op")
        if (operation == _INGEST) != bool(fds):
            raise InvalidInput("a file's descriptor comes with `ingest`, and with nothing else", operation="receive")
        if operation == _INGEST:
            return self._handler.ingest(session, fd_protocol.read_as(document, FdIngest), fds[0])
        question = _QUESTIONS.get(operation) if isinstance(operation, str) else None
        if question is None:
            raise InvalidInput(f"unknown request {str(operation)[:100]!r}", operation="receive")
        answer: Answer = getattr(self._handler, str(operation))(session, fd_protocol.read_as(document, question))
        return answer

    def _try_to_say(self, connection: socket.socket, error: CkptStoreError) -> None:
        with contextlib.suppress(OSError):
            connection.settimeout(self._send_timeout_s)
            fd_protocol.send(connection, FdReady(error=error.to_wire()))


def _peer(connection: socket.socket) -> tuple[int, int]:
    """The pid and uid of the process that connected, as the kernel knows them."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid
