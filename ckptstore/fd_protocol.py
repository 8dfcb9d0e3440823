"""How messages and file descriptors travel over the descriptor socket: one JSON object a line, descriptors beside its first byte.

Strictly question and answer: nobody sends a second line before the first was answered, so what follows a line's end is an error, and
no state is kept between messages. What arrives is never trusted: over-long lines, bad JSON, unexpected or truncated descriptors raise
InvalidInput, after every descriptor that came with them was closed. After any error the stream is out of step: close the socket.

A peer that hangs up raises ConnectionError, one that is too slow TimeoutError; each side says in its own words what that means.
Works with blocking sockets that have a timeout. One thread per socket at a time.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ckptstore.errors import InvalidInput
from ckptstore.faults import first_faults

LIMIT_BYTES = 1 << 20
#: A line that has begun must end within this time, however slowly its bytes drip.
LINE_TIMEOUT_S = 10.0
_CHUNK_BYTES = 1 << 16
_FD_BYTES = array.array("i").itemsize

M = TypeVar("M", bound=BaseModel)


def send(sock: socket.socket, message: BaseModel, fds: Sequence[int] = ()) -> None:
    """Send one line with descriptors, which stay the caller's. ConnectionError, TimeoutError."""
    line = memoryview(message.model_dump_json().encode("utf-8") + b"\n")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
    sent = sock.sendmsg([line], rights)
    if sent < len(line):
        sock.sendall(line[sent:])


def receive(
    sock: socket.socket, limit_bytes: int = LIMIT_BYTES, *, fd_limit: int = 1, line_timeout_s: float = LINE_TIMEOUT_S
) -> tuple[dict[str, Any], list[int]]:
    """One line, and the descriptors that came with it, which are the caller's to close.

    Waits for the first byte as long as the socket's own timeout says. InvalidInput, ConnectionError, TimeoutError.
    """
    fds: list[int] = []
    try:
        line = _receive_line(sock, limit_bytes, fd_limit, line_timeout_s, fds)
        document = json.loads(line)
        if not isinstance(document, dict):
            raise InvalidInput("a message is a JSON object", operation="receive")
    except (ValueError, RecursionError) as error:
        close_all(fds)
        raise InvalidInput(f"the message is no JSON: {str(error)[:200]}", operation="receive") from error
    except (OSError, InvalidInput):
        close_all(fds)
        raise
    return document, fds


def _receive_line(sock: socket.socket, limit_bytes: int, fd_limit: int, line_timeout_s: float, fds: list[int]) -> bytes:
    """The line without its end; `fds` gets every descriptor that arrives, also those that lead to an error."""
    line = bytearray()
    idle_timeout_s, deadline = sock.gettimeout(), 0.0
    space_bytes = socket.CMSG_SPACE((fd_limit + 1) * _FD_BYTES)  # one more than expected, so that it is seen and refused
    try:
        while True:
            data, ancillary, flags, _ = sock.recvmsg(_CHUNK_BYTES, space_bytes, socket.MSG_CMSG_CLOEXEC)
            fds += _descriptors(ancillary)
            if flags & socket.MSG_CTRUNC or len(fds) > fd_limit:
                raise InvalidInput(f"more than {fd_limit} descriptors came with one message", operation="receive")
            if not data:
                raise ConnectionResetError("the peer hung up" + (" in the middle of a message" if line else ""))
            line += data
            if len(line) > limit_bytes:
                raise InvalidInput(f"the message is longer than {limit_bytes} bytes", operation="receive")
            if b"\n" in data and line.index(b"\n") != len(line) - 1:
                raise InvalidInput("a second message came before the first was answered", operation="receive")
            if line.endswith(b"\n"):
                break
            deadline = deadline or time.monotonic() + line_timeout_s
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise TimeoutError(f"the message did not end within {line_timeout_s:g} s")
            sock.settimeout(remaining_s)
    finally:
        if deadline:
            sock.settimeout(idle_timeout_s)
    return bytes(line[:-1])


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % _FD_BYTES])
    return found.tolist()


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def read_as(document: dict[str, Any], message: type[M]) -> M:
    """The document as a message of this class; InvalidInput says which field is wrong."""
    try:
        return message.model_validate(document)
    except ValidationError as error:
        raise InvalidInput(first_faults(error, "message"), operation=f"read {message.__name__}") from error
