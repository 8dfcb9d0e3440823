"""Requests that wait for the same are answered one after another; those that wait for something else, and those of a failed one, are not
held up by them."""

from __future__ import annotations

import errno
import queue
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from ckptstore_client.mount.believed import MustWait
from ckptstore_client.mount.device import Unmounted
from ckptstore_client.mount.filesystem import Refused
from ckptstore_client.mount.protocol import Opcode, Request
from ckptstore_client.mount.serving import Serving
from tests.until import until


class Kernel:
    """The device and the file system in one: a node is a block to wait for, and a request's body says which piece of it."""

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()
        self.answers: dict[int, bytes | int] = {}
        self.there: dict[int, threading.Event] = {}
        self.refused: set[int] = set()
        self.operations = {Opcode.READ: self._read}
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()

    def wants(self, unique: int, block: int) -> None:
        self.there.setdefault(block, threading.Event())
        self._requests.put(Request(Opcode.READ, unique, block, 0, memoryview(b"piece")))

    def ends(self) -> None:
        self._requests.put(None)

    def read(self, buffer: bytearray) -> Request:
        request = self._requests.get()
        if request is None:
            self.ends()  # for the other receivers
            raise Unmounted
        return request

    def reply(self, unique: int, *parts: bytes) -> None:
        self.answers[unique] = b"".join(parts)

    def refuse(self, unique: int, code: int) -> None:
        self.answers[unique] = code

    def _read(self, request: Request, may_wait: bool) -> bytes:
        if not may_wait and not self.there[request.node].is_set():
            raise MustWait(request.node)
        if may_wait:
            self.asked[request.node] += 1
            assert self.there[request.node].wait(60)
        if request.node in self.refused:
            raise Refused(errno.EIO)
        return b"bytes"


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel: Any = Kernel()
    serving = Serving(kernel, kernel, kernel, want_passthrough=False, when_agreed=lambda terms: None)
    runs = threading.Thread(target=serving.run)
    runs.start()
    yield kernel
    for there in kernel.there.values():
        there.set()
    kernel.ends()
    runs.join(60)
    assert not runs.is_alive()


def test_the_pieces_of_a_block_are_asked_for_once(kernel: Kernel) -> None:
    for unique in range(1, 9):
        kernel.wants(unique, block=7)
    kernel.wants(100, block=8)
    until("both blocks are asked for", lambda: kernel.asked == {7: 1, 8: 1})
    kernel.there[8].set()
    until("the other block's reader has its bytes", lambda: kernel.answers == {100: b"bytes"})
    assert kernel.asked[7] == 1
    kernel.there[7].set()
    until("all have their bytes", lambda: kernel.answers == dict.fromkeys([*range(1, 9), 100], b"bytes"))


def test_behind_a_read_that_fails_nobody_waits_longer_than_it_did(kernel: Kernel) -> None:
    kernel.refused.add(7)
    for unique in range(1, 9):
        kernel.wants(unique, block=7)
    until("the block is asked for", lambda: kernel.asked[7] == 1)
    first_there, kernel.there[7] = kernel.there[7], threading.Event()
    first_there.set()
    until("the others ask, all at once", lambda: kernel.asked[7] == 8)
    assert list(kernel.answers.values()) == [errno.EIO]
    kernel.there[7].set()
    until("all are told", lambda: kernel.answers == dict.fromkeys(range(1, 9), errno.EIO))
