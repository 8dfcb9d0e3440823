"""How do holder and serving process speak? Over a pair of sockets, one packet a message, descriptors beside it.

    serving → holder   keep NAME + descriptor      kept beyond the sender's life; NAME begins with the id that `drop` names
                       drop ID
                       ready                       it serves
    holder → serving   kept NAME + descriptor      at its start: all that is kept
                       all                         that was all

A descriptor that was sent is safe at once: it lives in the socket until the holder takes it. If the holder is gone, serving goes on.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from ckptstore.fd_protocol import close_all

MESSAGE_BYTES = 256
_SEND_TIMEOUT_S = 5.0


class HolderSocket:
    """The serving process's end. Thread-safe after `kept`."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._lock = threading.Lock()

    def kept(self) -> Iterator[tuple[str, int]]:
        """What the holder keeps; each descriptor is the caller's."""
        self._socket.settimeout(None)
        while True:
            data, fds, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, 1)
            if data in (b"all", b""):
                self._socket.settimeout(_SEND_TIMEOUT_S)
                return
            yield data.decode().partition(" ")[2], fds[0]

    def keep(self, name: str, fd: int) -> None:
        with self._lock, contextlib.suppress(OSError):
            socket.send_fds(self._socket, [f"keep {name}".encode()], [fd])

    def let_go(self, name: str) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._socket.send(f"drop {name}".encode())

    def ready(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._socket.send(b"ready")


class KeptDescriptors:
    """The holder's end: what it keeps, by the id at the name's beginning. A pair of sockets for each serving process. One thread."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._kept: dict[str, tuple[str, int]] = {}

    def connect(self) -> socket.socket:
        """The end for a new serving process, inheritable; close it here once that has it, or its death would go unnoticed."""
        if self._socket is not None:
            self._socket.close()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.set_inheritable(True)
        return theirs

    def fileno(self) -> int:
        assert self._socket is not None
        return self._socket.fileno()

    def hand_over(self) -> None:
        """All that is kept, to a serving process that has just been started. OSError if it is dead again, or does not listen."""
        assert self._socket is not None
        self._socket.settimeout(_SEND_TIMEOUT_S)
        for name, fd in self._kept.values():
            socket.send_fds(self._socket, [f"kept {name}".encode()], [fd])
        self._socket.send(b"all")

    def receive(self) -> bool:
        """Take what has come, without waiting. True if the serving process has said that it serves."""
        assert self._socket is not None
        self._socket.setblocking(False)
        ready = False
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            except (BlockingIOError, ConnectionError):
                return ready
            if not data:  # it is dead; what it had sent has been taken
                return ready
            word, _, name = data.decode().partition(" ")
            if word == "keep":
                self._drop(name.partition(" ")[0])
                self._kept[name.partition(" ")[0]] = name, fds[0]
            elif word == "drop":
                self._drop(name)
            ready = ready or word == "ready"

    def _drop(self, id: str) -> None:
        if id in self._kept:
            close_all([self._kept.pop(id)[1]])
