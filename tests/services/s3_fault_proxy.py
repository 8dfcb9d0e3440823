"""An HTTP proxy on loopback that spoils, on command, what passes between a client and a real S3 server.

Requests are forwarded as they are, Host included, so that their signatures still hold. Faults are rules: the first that matches a
request and is not used up applies to it; without one, everything passes. HTTP is h11's; sockets are asyncio's, in one thread of the
proxy's own. `add`, `quicken`, `clear`, `down`, `up`, `requests` may be called from any thread.

    with S3FaultProxy(server.endpoint_url) as proxy:
        proxy.add(Fault(method="PUT", contains="partNumber=", reset_after_bytes=1_000_000, times=1))

What is slow is a share of one line, as behind a store's own limit; `quicken` ends that for requests under way too, and breaks none of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import struct
import threading
from collections import Counter
from types import TracebackType
from typing import NoReturn
from urllib.parse import urlsplit

import h11

_RECEIVE_BYTES = 256 * 1024


@dataclasses.dataclass
class Fault:
    """What happens to requests whose method and target (`/bucket/key?query`) match, the next `times` times (None: always)."""

    method: str | None = None
    contains: str = ""
    #: What one of the request's headers has to contain: `bytes=0-` meets the first range.
    header: str = ""
    times: int | None = None
    #: Never answer; the request is read and held until the client hangs up.
    hang: bool = False
    #: Answer this instead of forwarding, with `body`.
    status: int | None = None
    body: bytes = b""
    #: Forward the request, then drop the answer and reset the connection: the server has acted and the client does not know.
    lose_answer: bool = False
    #: The same, but the connection stays, with no answer, until the client hangs up.
    hold_answer: bool = False
    #: Set when a request hangs, or its answer is held.
    held: threading.Event = dataclasses.field(default_factory=threading.Event, compare=False)
    #: Reset the connection after so many bytes of the request's body.
    reset_after_bytes: int | None = None
    #: Flip the bit of the byte at this place of the request's or the answer's body.
    flip_request_byte: int | None = None
    flip_answer_byte: int | None = None
    #: End the connection after so many bytes of the answer's body.
    truncate_answer_bytes: int | None = None
    #: Reset the connection after so many bytes of the answer's body.
    reset_answer_after_bytes: int | None = None
    #: Pass the bodies of requests and answers on no faster than this, all that meet the rule together.
    bytes_per_s: float | None = None

    def again(self) -> Fault:
        """The same rule, with all its times before it."""
        return dataclasses.replace(self, held=threading.Event())

    def matches(self, method: str, target: str, headers: list[str]) -> bool:
        if self.times == 0 or self.method not in (None, method) or self.contains not in target:
            return False
        return not self.header or any(self.header in value for value in headers)


class _Cut(Exception):
    """This connection is to be reset."""


class S3FaultProxy:
    def __init__(self, upstream_url: str) -> None:
        parts = urlsplit(upstream_url)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._requests: list[tuple[str, str]] = []
        self._answered: Counter[str] = Counter()
        self._down = False
        #: When the last byte of what is slow will have passed, by the loop's clock; and the end of that.
        self._busy_until_s = 0.0
        self._quick = asyncio.Event()
        self._connections: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="s3-fault-proxy", daemon=True)
        self._port = 0

    def __enter__(self) -> S3FaultProxy:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Method and target of every request since the last `clear`."""
        with self._lock:
            return list(self._requests)

    def answered_bytes(self, path: str) -> int:
        """Of the bodies of all answers about this target, without its query, since the last `clear`."""
        with self._lock:
            return self._answered[path]

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def quicken(self) -> None:
        """No more slowness: what was held back passes at once, and unhurt."""
        with self._lock:
            self._faults = [fault for fault in self._faults if fault.bytes_per_s is None]
        self._run(self._end_slowness())

    def clear(self) -> None:
        """No more faults, connections that hang are reset, and the memory of requests is empty."""
        with self._lock:
            self._faults.clear()
            self._requests.clear()
            self._answered.clear()
        self._run(self._reset_all())
        self._run(self._end_slowness())

    def down(self) -> None:
        """Reset all connections, and every new one, until `up`."""
        self._down = True
        self._run(self._reset_all())

    def up(self) -> None:
        self._down = False

    def _run(self, coroutine):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=10)

    async def _end_slowness(self) -> None:
        self._quick.set()
        self._quick, self._busy_until_s = asyncio.Event(), 0.0

    async def _take_time(self, fault: Fault, size_bytes: int) -> None:
        """As long as the bytes need behind those that came before them; with a rule that `quicken` has ended, none."""
        with self._lock:
            if fault.bytes_per_s is None or not any(fault is one for one in self._faults):
                return
        quick, now_s = self._quick, self._loop.time()
        self._busy_until_s = max(self._busy_until_s, now_s) + size_bytes / fault.bytes_per_s
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(quick.wait(), self._busy_until_s - now_s)

    async def _reset_all(self) -> None:
        for writer in list(self._connections):
            _reset(writer)

    async def _stop(self) -> None:
        self._server.close()
        await self._reset_all()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            if not self._down:
                await self._serve_requests(_Peer(h11.Connection(h11.SERVER), reader, writer))
        except (OSError, _Cut, h11.ProtocolError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(writer)
            _reset(writer)

    async def _serve_requests(self, client: _Peer) -> None:
        """One request after the other on one connection, each with its own connection to the server."""
        while True:
            request = await client.next_event()
            if not isinstance(request, h11.Request):
                return
            values = [value.decode("latin-1") for _, value in request.headers]
            fault = self._fault_for(request.method.decode(), request.target.decode(), values)
            server = _Peer(h11.Connection(h11.CLIENT), *await asyncio.open_connection(*self._upstream))
            self._connections.add(server.writer)
            try:
                await self._exchange(client, server, request, fault)
            finally:
                self._connections.discard(server.writer)
                server.writer.close()
            if client.protocol.our_state is not h11.DONE or client.protocol.their_state is not h11.DONE:
                return
            client.protocol.start_next_cycle()

    def _fault_for(self, method: str, target: str, headers: list[str]) -> Fault:
        with self._lock:
            self._requests.append((method, target))
            fault = next((one for one in self._faults if one.matches(method, target, headers)), Fault())
            if fault.times is not None:
                fault.times -= 1
            return fault

    async def _exchange(self, client: _Peer, server: _Peer, request: h11.Request, fault: Fault) -> None:
        # The proxy itself says "continue": what the server would answer before the body, it answers after it too. "Expect" is not signed.
        if client.protocol.they_are_waiting_for_100_continue:
            await client.send(h11.InformationalResponse(status_code=100, headers=[]))
        headers = [
            (name, value)
            for name, value in request.headers.raw_items()
            if name.lower() not in (b"expect", b"connection")
        ]
        forwards = fault.status is None and not fault.hang
        if forwards:
            await server.send(
                h11.Request(method=request.method, target=request.target, headers=[*headers, (b"Connection", b"close")])
            )
        position = 0
        while isinstance(event := await client.next_event(), h11.Data):
            data = _flipped(bytes(event.data), position, fault.flip_request_byte)
            position += len(data)
            if fault.reset_after_bytes is not None and position >= fault.reset_after_bytes:
                raise _Cut
            await self._take_time(fault, len(data))
            if forwards:
                await server.send(h11.Data(data=data))
        if fault.hang:
            await self._hold(client, fault)
        if fault.status is not None:
            headers = [(b"Content-Length", str(len(fault.body)).encode()), (b"Content-Type", b"application/xml")]
            await client.send(h11.Response(status_code=fault.status, headers=headers))
            await client.send(h11.Data(data=fault.body))
            await client.send(h11.EndOfMessage())
            return
        await server.send(h11.EndOfMessage())
        await self._answer(client, server, fault, request.target.decode("ascii").partition("?")[0])

    async def _hold(self, client: _Peer, fault: Fault) -> NoReturn:
        """Until the client hangs up, or `clear` resets the connection."""
        fault.held.set()
        await client.reader.read()
        raise _Cut

    async def _answer(self, client: _Peer, server: _Peer, fault: Fault, path: str) -> None:
        position = 0
        while not isinstance(event := await server.next_event(), h11.EndOfMessage | h11.ConnectionClosed):
            if fault.lose_answer:
                raise _Cut
            if fault.hold_answer:
                await self._hold(client, fault)
            if isinstance(event, h11.Response):
                headers = [(name, value) for name, value in event.headers.raw_items() if name.lower() != b"connection"]
                await client.send(h11.Response(status_code=event.status_code, headers=headers))
            elif isinstance(event, h11.Data):
                data = _flipped(bytes(event.data), position, fault.flip_answer_byte)
                if fault.truncate_answer_bytes is not None and position + len(data) > fault.truncate_answer_bytes:
                    await client.send(h11.Data(data=data[: fault.truncate_answer_bytes - position]))
                    client.writer.write_eof()
                    await client.reader.read()
                    raise _Cut
                position += len(data)
                await self._take_time(fault, len(data))
                with self._lock:
                    self._answered[path] += len(data)
                await client.send(h11.Data(data=data))
                if fault.reset_answer_after_bytes is not None and position >= fault.reset_answer_after_bytes:
                    raise _Cut
        await client.send(h11.EndOfMessage())


class _Peer:
    """One end of an exchange: h11's state of it, and its streams."""

    def __init__(self, protocol: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.protocol = protocol
        self.reader = reader
        self.writer = writer

    async def next_event(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self.protocol.next_event()) is h11.NEED_DATA:
            self.protocol.receive_data(await self.reader.read(_RECEIVE_BYTES))
        return event

    async def send(self, event: h11.Event) -> None:
        data = self.protocol.send(event)
        if data:
            self.writer.write(data)
            await self.writer.drain()


def _flipped(data: bytes, position: int, place: int | None) -> bytes:
    """`data`, which begins at `position` of its body, with one bit of the byte at `place` flipped if that lies inside."""
    if place is None or not position <= place < position + len(data):
        return data
    spoilt = bytearray(data)
    spoilt[place - position] ^= 1
    return bytes(spoilt)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as a crashing server or a firewall does."""
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
