"""How are requests answered, many at once, without one that waits holding up the rest?

A few threads read the device and answer at once what can be answered at once. What has to be asked for is handed to a pool, whose size
bounds how many readers wait for bytes at a time; the kernel keeps the others. Requests that wait for the same (a block, which the kernel
reads in pieces) are answered by one thread, one after another: it is asked for once. A reader that is interrupted (Ctrl-C) while its
bytes are on their way is let go at once with EINTR, and the late answer is dropped.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor

from ckptstore.errors import CkptStoreError
from ckptstore_client.mount import protocol
from ckptstore_client.mount.believed import MustWait
from ckptstore_client.mount.device import Device, Unmounted
from ckptstore_client.mount.filesystem import Body, FileSystem, Refused, errno_of
from ckptstore_client.mount.handles import OpenFiles
from ckptstore_client.mount.journal import Journal, Line
from ckptstore_client.mount.nodes import Nodes
from ckptstore_client.mount.protocol import Agreed, Opcode, Request

_log = logging.getLogger(__name__)

RECEIVERS = 3
#: Requests that wait for the source at once. Sixteen readers with the kernel's read-ahead have three or four each under way.
WAITING_THREADS = 64
#: A request that is not answered for so long ends the mount: whoever should have answered is stuck. Waits of ours are shorter.
REQUEST_TIMEOUT_S = 300


class Serving:
    def __init__(
        self, device: Device, filesystem: FileSystem, journal: Journal, *, want_passthrough: bool, when_agreed: Callable[[Agreed], None]
    ) -> None:
        self._device = device
        self._filesystem = filesystem
        self._journal = journal
        self._want_passthrough = want_passthrough
        self._when_agreed = when_agreed
        self._pool = ThreadPoolExecutor(WAITING_THREADS, thread_name_prefix="ckptstore-wait")
        self._waiting_lock = threading.Lock()
        #: reads that the pool works on, by the kernel's number
        self._waiting: set[int] = set()
        #: requests behind the one that asks for what they wait for
        self._behind: dict[Hashable, deque[Request]] = {}
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Until it is unmounted. CkptStoreError if the device fails."""
        receivers = [threading.Thread(target=self._receive, name=f"ckptstore-mount-{number}") for number in range(RECEIVERS)]
        for receiver in receivers:
            receiver.start()
        for receiver in receivers:
            receiver.join()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._failure is not None:
            raise self._failure

    def _receive(self) -> None:
        buffer = bytearray(protocol.REQUEST_BYTES)
        try:
            while True:
                self._take(self._device.read(buffer))
        except Unmounted:
            return
        except CkptStoreError as error:
            self._failure = error

    def _take(self, request: Request) -> None:
        operation = self._filesystem.operations.get(request.opcode)
        if operation is None:
            self._without_operation(request)
            return
        try:
            body = self._answer(request, may_wait=False)
        except MustWait as waits:
            kept = dataclasses.replace(request, body=memoryview(bytes(request.body)))
            if request.opcode == Opcode.READ:
                with self._waiting_lock:
                    self._waiting.add(request.unique)
            self._queue(kept, waits.what)
            return
        self._reply(request, body)

    def _queue(self, request: Request, what: Hashable) -> None:
        if what is None:
            self._pool.submit(self._answer_later, request)
            return
        with self._waiting_lock:
            if (behind := self._behind.get(what)) is not None:
                behind.append(request)
                return
            self._behind[what] = deque()
        self._pool.submit(self._answer_in_turn, request, what)

    def _answer_in_turn(self, first: Request, what: Hashable) -> None:
        """A request and those behind it. What one was refused the others ask for at once, so that nobody waits longer for being behind."""
        request: Request | None = first
        while request is not None:
            answered = self._answer_later(request)
            with self._waiting_lock:
                behind = self._behind[what]
                if not (answered and behind):
                    del self._behind[what]
                request = behind.popleft() if answered and behind else None
        for late in behind:
            self._pool.submit(self._answer_later, late)

    def _answer(self, request: Request, *, may_wait: bool) -> Body | int:
        """The body, or an errno."""
        try:
            return self._filesystem.operations[request.opcode](request, may_wait)
        except Refused as refused:
            return refused.code
        except CkptStoreError as error:
            code = errno_of(error)
            if code == errno.EIO:
                _log.warning("%s: %s", Opcode(request.opcode).name.lower(), error)
            return code

    def _answer_later(self, request: Request) -> bool:
        """Whether there was an answer, rather than an error."""
        try:
            body = self._answer(request, may_wait=True)
            if request.opcode == Opcode.READ:
                with self._waiting_lock:
                    if request.unique not in self._waiting:  # interrupted, and answered so
                        return not isinstance(body, int)
                    self._waiting.discard(request.unique)
            self._reply(request, body)
        except Unmounted:
            return False
        except Exception:  # noqa: BLE001 — the top of a task: a bug must not leave a reader waiting
            _log.exception("a request failed: %s", request)
            self._device.refuse(request.unique, errno.EIO)
            return False
        return not isinstance(body, int)

    def _reply(self, request: Request, body: Body | int) -> None:
        if isinstance(body, int):
            self._device.refuse(request.unique, body)
        else:
            self._device.reply(request.unique, body)

    def _without_operation(self, request: Request) -> None:
        if request.opcode == Opcode.FORGET:
            self._filesystem.forget(request.node, protocol.FORGET_IN.unpack_from(request.body)[0])
        elif request.opcode == Opcode.BATCH_FORGET:
            (count,) = protocol.BATCH_FORGET_IN.unpack_from(request.body)
            start = protocol.BATCH_FORGET_IN.size
            for id, lookups in protocol.FORGET_ONE.iter_unpack(request.body[start : start + count * protocol.FORGET_ONE.size]):
                self._filesystem.forget(id, lookups)
        elif request.opcode == Opcode.INTERRUPT:
            self._interrupt(protocol.FORGET_IN.unpack_from(request.body)[0])
        elif request.opcode == Opcode.INIT:
            self._initialise(request)
        elif request.opcode == Opcode.DESTROY:
            self._device.reply(request.unique)
        elif request.opcode in protocol.WRITING_OPCODES:
            self._device.refuse(request.unique, errno.EROFS)
        else:  # FLUSH, ACCESS, LSEEK and what newer kernels know: it does without, and does not ask again
            self._device.refuse(request.unique, errno.ENOSYS)

    def _interrupt(self, unique: int) -> None:
        with self._waiting_lock:
            found = unique in self._waiting
            self._waiting.discard(unique)
        if found:
            self._device.refuse(unique, errno.EINTR)

    def _initialise(self, request: Request) -> None:
        agreed = protocol.agree(request.body, passthrough=self._want_passthrough, request_timeout_s=REQUEST_TIMEOUT_S)
        if agreed is None:
            self._device.refuse(request.unique, errno.EPROTO)
            return
        terms, reply = agreed
        with self._filesystem.lock:
            self._journal.append(agreed_line(terms))
        self._filesystem.passthrough = terms.passthrough
        self._device.reply(request.unique, reply)
        self._when_agreed(terms)


def agreed_line(terms: Agreed) -> Line:
    return ("agreed", *dataclasses.astuple(terms))


def recall(journal: Journal, nodes: Nodes, files: OpenFiles) -> Agreed | None:
    """Fill the tables from the journal; what was agreed with the kernel, if the mount is not new."""
    agreed = None
    for line in journal.lines():
        if line[0] == "agreed":
            agreed = Agreed(*line[1:])
        elif line[0] in ("node", "look", "looked", "forget", "next"):
            nodes.recall(line)
        else:
            files.recall(line, nodes.get(line[2] if line[0] == "open" else line[1]))
    return agreed
