"""How does a thread wait for a server with the fewest wake-ups? In the kernel, until a whole piece of a body has come or gone.

A Python socket with a timeout asks the kernel twice for whatever has just arrived (poll, recv), and takes and drops the interpreter's
lock each time: thousands of times a GB. This one blocks, and the kernel keeps the time (SO_RCVTIMEO, SO_SNDTIMEO): a large piece is
received by one call (MSG_WAITALL), and sent by one. Measured against SeaweedFS on loopback, alternating with the other, two busy cores:
0.15–0.17 CPU seconds a GB received instead of 0.18–0.19 by bare sockets, and all of the interpreter's work between the pieces besides.
SO_RCVLOWAT would save more wake-ups and stalls the sender instead: a tenth of the speed.

Timeouts mean what they mean elsewhere here: `timeout_s` of silence while receiving, and for each `SEND_BYTES` that are sent. The kernel
looks four times as often, and a piece of which some bytes came is given on, so that silence is noticed after at most 1.25 timeouts.
The kernel takes megabytes of a body at once: while a slow server still takes those, by that pace, it is not silent.

For plain TCP only: OpenSSL takes the kernel's timeout for a reason to wait without one. One thread at a time uses a socket.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import socket
import struct
import termios
import time
from typing import Any

#: What may take one timeout to be sent.
SEND_BYTES = 256 * 1024
_LOOKS = 4


class WaitingSocket(socket.socket):
    """A connected TCP socket, for `http.client`: it reads bodies by `recv_into`, through a `socket.SocketIO`."""

    _timeout_s = 0.0

    @classmethod
    def over(cls, connected: socket.socket, timeout_s: float) -> WaitingSocket:
        """Takes the connection over: `connected` is closed, in effect."""
        taken = cls(fileno=connected.detach())
        taken._timeout_s = timeout_s
        taken.settimeout(None)
        seconds, microseconds = divmod(max(1, int(timeout_s * 1e6 / _LOOKS)), 1_000_000)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            taken.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", seconds, microseconds))
        return taken

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """All of a large piece, unless the other side ends it, or pauses. What is as large as a reader's buffer may be a head."""
        if len(buffer) > io.DEFAULT_BUFFER_SIZE:
            flags |= socket.MSG_WAITALL
        looks, latest_s, unsent_bytes = 0, 0.0, 0
        while looks < _LOOKS:
            try:
                return super().recv_into(buffer, nbytes, flags)
            except BlockingIOError:
                looks += 1
                before, unsent_bytes = unsent_bytes, self._unsent_bytes()
                if not latest_s:
                    latest_s = time.monotonic() + self._timeout_s * -(-unsent_bytes // SEND_BYTES)
                elif unsent_bytes < before and time.monotonic() < latest_s:
                    looks = 0  # what it is to answer to is still on its way there
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    def _unsent_bytes(self) -> int:
        """What `sendall` has left with the kernel, and the other side has not taken yet."""
        (queued,) = struct.unpack("@i", fcntl.ioctl(self, termios.TIOCOUTQ, bytes(4)))
        return int(queued)

    def sendall(self, data: Any, flags: int = 0) -> None:
        view = memoryview(data).cast("B")
        latest_s = time.monotonic() + self._timeout_s * max(1, -(-len(view) // SEND_BYTES))
        looks = 0
        while len(view):
            try:
                view = view[self.send(view, flags) :]
                looks = 0
            except BlockingIOError:
                looks += 1
            if looks == _LOOKS or (len(view) and time.monotonic() > latest_s):
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
