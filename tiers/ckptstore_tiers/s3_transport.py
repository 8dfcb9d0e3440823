"""How do the bytes of a signed request travel? Over http.client's connections, straight between a socket and the caller's memory.

botocore builds, signs and parses every request, and offers each signed one to its `before-send` handlers: an answer that one of them
gives takes the place of its own transport's. That one (urllib3) receives into memory of its own and copies from there, sends bodies in
16 KiB pieces, and waits for "100 Continue" before each part. Measured against Ceph (512 MiB, 16 MiB ranges, 8 at a time, two cores):
0.46–0.50 CPU seconds a GB received through urllib3, 0.32–0.34 through http.client; parts are sent for 0.25 instead of 0.5. How the
sockets beneath wait is `s3_socket`'s answer.

Not sendfile: a part's checksum is sent before it, so its bytes have to be in memory once anyway, and read by O_DIRECT they cost the
processor nothing on the way in. Behind a proxy botocore's own transport stays in charge: this one is not installed then.

A connection is used by one request at a time and goes back to the pool only when its answer was read to the end. Any thread may send.
"""

from __future__ import annotations

import http.client
import os
import select
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, urlsplit

from botocore.awsrequest import AWSResponse
from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ReadTimeoutError,
    SSLError,
)

from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.s3_socket import SEND_BYTES, WaitingSocket


class Body:
    """A request's body out of memory, wherever its pieces lie, without copies; every try sends it from its start.

    `read` gives at most one piece's bytes, and at least `SEND_BYTES` of it whatever is asked: botocore's own transport asks for 16 KiB.
    """

    def __init__(self, *pieces: bytes | bytearray | memoryview) -> None:
        self._pieces = [memoryview(piece).cast("B").toreadonly() for piece in pieces]
        self._size_bytes = sum(map(len, self._pieces))
        self._position = 0

    def __len__(self) -> int:
        return self._size_bytes

    def read(self, size: int = -1) -> memoryview:
        start = self._position
        for piece in self._pieces:
            if start < len(piece):
                view = piece[start : start + max(size, SEND_BYTES)] if size >= 0 else piece[start:]
                self._position += len(view)
                return view
            start -= len(piece)
        return memoryview(b"")

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self)}[whence]
        return self._position


Place = tuple[str, str, int | None]  # scheme, host, port


class DirectTransport:
    """The pool of connections of one tier. `send` is what botocore calls for each signed request."""

    def __init__(
        self, *, connect_timeout_s: float, read_timeout_s: float, idle_limit: int, trusted: ssl.SSLContext | None
    ) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._idle_limit = idle_limit
        self._trusted = trusted
        self._lock = threading.Lock()
        self._idle: dict[Place, list[http.client.HTTPConnection]] = {}
        self._closed = False

    def send(self, request: Any, **_: object) -> AWSResponse:
        """The answer to a prepared request, its body still to be read. Raises botocore's own errors, as its transport would."""
        parts = urlsplit(request.url)
        place = (parts.scheme, parts.hostname or "", parts.port)
        connection = self._idle_connection(place) or self._connect(place)
        try:
            with _as_botocore_says(parts):
                response = _exchange(connection, request, parts)
                if response.length is None and not response.chunked:
                    # Of such an answer nobody can tell whether it is whole; http.client also takes a head that was cut off for one.
                    raise http.client.IncompleteRead(b"")
        except BaseException:
            connection.close()
            raise
        body = _Body(self, place, connection, response, parts)
        return AWSResponse(request.url, response.status, dict(response.headers.items()), body)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle = [connection for connections in self._idle.values() for connection in connections]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def give_back(self, place: Place, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            idle = self._idle.setdefault(place, [])
            if not self._closed and len(idle) < self._idle_limit:
                idle.append(connection)
                return
        connection.close()

    def _idle_connection(self, place: Place) -> http.client.HTTPConnection | None:
        """The one that was used last, unless its server has ended it: then there is something to read, the end."""
        while True:
            with self._lock:
                idle = self._idle.get(place)
                connection = idle.pop() if idle else None
            if connection is None or not _is_readable(connection):
                return connection
            connection.close()

    def _connect(self, place: Place) -> http.client.HTTPConnection:
        scheme, host, port = place
        connection = (
            http.client.HTTPSConnection(
                host, port, timeout=self._connect_timeout_s, blocksize=BLOCK_BYTES, context=self._trusted
            )
            if scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=self._connect_timeout_s, blocksize=BLOCK_BYTES)
        )
        url = f"{scheme}://{host}:{connection.port}"
        try:
            connection.connect()
        except ssl.SSLError as error:
            raise SSLError(endpoint_url=url, error=error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(endpoint_url=url, error=error) from error
        except OSError as error:
            raise EndpointConnectionError(endpoint_url=url, error=error) from error
        if scheme == "https":
            connection.sock.settimeout(self._read_timeout_s)
        else:
            connection.sock = WaitingSocket.over(connection.sock, self._read_timeout_s)
        return connection


def _exchange(connection: http.client.HTTPConnection, request: Any, parts: SplitResult) -> http.client.HTTPResponse:
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    # Without "Expect" the body follows at once. The header is never part of the signature.
    headers = {name: value for name, value in request.headers.items() if name.lower() != "expect"}
    try:
        connection.request(request.method, target, body=request.body, headers=headers)
    except (BrokenPipeError, ConnectionResetError):
        # A server that will not have the body may answer in the middle of it, and hang up: what it said is still there to read.
        response = connection.getresponse()
        response.will_close = True
        return response
    return connection.getresponse()


class _Body:
    """An answer's body as botocore takes it: a stream that fills the caller's memory."""

    def __init__(
        self,
        transport: DirectTransport,
        place: Place,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        parts: SplitResult,
    ) -> None:
        self._transport = transport
        self._place = place
        self._connection: http.client.HTTPConnection | None = connection
        self._response = response
        self._parts = parts

    def readinto(self, buffer: memoryview) -> int:
        with _as_botocore_says(self._parts):
            count = self._response.readinto(buffer)
            self._check_whole(count or not len(buffer))
        self._settle()
        return count

    def read(self, size: int | None = None) -> bytes:
        with _as_botocore_says(self._parts):
            data = self._response.read(size)
            self._check_whole(data or size == 0)
        self._settle()
        return data

    def _check_whole(self, found: object) -> None:
        """http.client ends a body that was cut off as it ends a whole one."""
        if not found and self._response.length:
            raise http.client.IncompleteRead(b"", self._response.length)

    def stream(self, size: int = SEND_BYTES) -> Iterator[bytes]:
        while data := self.read(size):
            yield data

    def close(self) -> None:
        """End the connection, if half an answer is left in it."""
        self._settle()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _settle(self) -> None:
        """An answer that was read to its end sets its connection free."""
        if self._connection is not None and self._response.isclosed() and not self._response.will_close:
            connection, self._connection = self._connection, None
            if self._response.length in (0, None):
                self._transport.give_back(self._place, connection)
            else:
                connection.close()  # it ended early


@contextmanager
def _as_botocore_says(parts: SplitResult) -> Iterator[None]:
    """What sockets and http.client raise, as the error that botocore's own transport has for it."""
    url = f"{parts.scheme}://{parts.netloc}"
    try:
        yield
    except TimeoutError as error:
        raise ReadTimeoutError(endpoint_url=url, error=error) from error
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionClosedError(endpoint_url=url, error=error) from error


def _is_readable(connection: http.client.HTTPConnection) -> bool:
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))
