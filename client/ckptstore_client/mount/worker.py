"""What does the serving process do from its start to its end? Takes up what its predecessor left, and serves until it is unmounted.

Started by the holder with the device, the journal and the holder's socket as inherited descriptors. A successor fills its tables from the
journal, takes the descriptors that the holder kept, and has the kernel ask once more for whatever was under way.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from ckptstore.errors import CkptStoreError
from ckptstore_client.mount.believed import Believed
from ckptstore_client.mount.device import Device, Unmounted, raise_read_ahead
from ckptstore_client.mount.filesystem import FileSystem
from ckptstore_client.mount.handles import OpenFiles
from ckptstore_client.mount.journal import Journal, Line
from ckptstore_client.mount.keeping import HolderSocket
from ckptstore_client.mount.nodes import Nodes
from ckptstore_client.mount.protocol import Agreed, Notify
from ckptstore_client.mount.serving import Serving, agreed_line, recall
from ckptstore_client.mount.source import Source
from ckptstore_client.mount.task import Task
from ckptstore_client.mount.telling import Telling

_log = logging.getLogger(__name__)

#: The kernel asks for so much beyond what a program reads; at 1 MiB a request eight are under way.
READ_AHEAD_BYTES = 8 << 20


def _source(task: Task) -> tuple[Source, float]:
    """And for how long what changes silently is believed."""
    if task.options.folder:
        from ckptstore_client.mount.local_folder import LocalFolder

        return LocalFolder(Path(task.options.source)), 0.0
    from ckptstore_client.mount.daemon_source import BELIEVED_S, DaemonSource

    return DaemonSource.of_home(Path(task.options.source)), BELIEVED_S


class Worker:
    def __init__(self, task: Task) -> None:
        self._task = task
        self._agreed: Agreed | None = None
        self._device = Device(task.device_fd)
        self._journal = Journal(task.journal_fds)
        self._holder = HolderSocket(task.holder_fd)
        self._source, believed_s = _source(task)
        believed = Believed(self._source, believed_s=believed_s)
        lock = threading.Lock()
        self._nodes = Nodes(self._journal, task.options.root)
        self._files = OpenFiles(self._journal, self._device, self._holder)
        self._agreed = recall(self._journal, self._nodes, self._files)
        self._journal.state = self._state
        self._filesystem = FileSystem(
            self._source,
            believed,
            self._device,
            self._nodes,
            self._files,
            lock,
            passthrough=self._agreed is not None and self._agreed.passthrough,
        )
        self._serving = Serving(
            self._device, self._filesystem, self._journal, want_passthrough=task.options.passthrough, when_agreed=self._now_agreed
        )
        self._telling = Telling(self._source, believed, self._device, self._nodes, self._filesystem)

    def run(self) -> None:
        for name, fd in self._holder.kept():
            if not self._files.take_up(name, fd):
                os.close(fd)
                self._holder.let_go(name.partition(" ")[0])
        self._files.settle()
        try:
            if self._task.successor:
                self._device.notify(Notify.RESEND)
            self._telling.start()
            self._holder.ready()
            self._serving.run()
        except Unmounted:
            return
        finally:
            self._telling.stop()

    def _now_agreed(self, terms: Agreed) -> None:
        self._agreed = terms
        if not raise_read_ahead(Path(self._task.options.mountpoint), READ_AHEAD_BYTES):
            _log.info("the kernel's read-ahead stays at its default: only root may raise it")

    def _state(self) -> Iterator[Line]:
        if self._agreed is not None:
            yield agreed_line(self._agreed)
        yield from self._nodes.lines()
        yield from self._files.lines()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    task = Task.read(sys.argv[1])
    try:
        Worker(task).run()
    except CkptStoreError as error:
        print(f"ckptstore: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    os._exit(0)  # threads that still wait for the source have nobody left to answer


if __name__ == "__main__":
    main()
