"""How does the kernel hear of what changed in the tree? From a thread that the source tells of changes, one by one.

For a path that changed, the kernel drops its name and all below it, and believes no more in the names above; the next one who asks is
answered anew. Our own memory goes first, so that what is asked in between is not answered from it. It is not a thread that answers
requests: the kernel may hold a folder's lock for such a request while it is told of that folder.

A second thread gives up what was closed a while ago.
"""

from __future__ import annotations

import logging
import threading

from ckptstore.errors import CkptStoreError, DaemonUnavailable, WaitTimeout
from ckptstore.paths import LATEST, parent_and_name
from ckptstore_client.mount import protocol
from ckptstore_client.mount.believed import Believed
from ckptstore_client.mount.device import Device, Unmounted
from ckptstore_client.mount.filesystem import FileSystem
from ckptstore_client.mount.nodes import Nodes
from ckptstore_client.mount.protocol import Notify
from ckptstore_client.mount.source import Source

_log = logging.getLogger(__name__)

#: How soon changes are asked for again after the source did not answer.
PAUSE_S = 0.5
REAP_EVERY_S = 1.0
#: Of INVAL_ENTRY: ask again at the next look-up, and keep what is below until then. Kernels before 6.2 drop it.
_EXPIRE_ONLY = 1


class Telling:
    def __init__(self, source: Source, believed: Believed, device: Device, nodes: Nodes, filesystem: FileSystem) -> None:
        self._source = source
        self._believed = believed
        self._device = device
        self._nodes = nodes
        self._filesystem = filesystem
        self._root = nodes.root_path
        self._end = threading.Event()

    def start(self) -> None:
        for work in (self._listen, self._reap):
            threading.Thread(target=work, name=f"ckptstore{work.__name__}", daemon=True).start()

    def stop(self) -> None:
        self._end.set()

    def _reap(self) -> None:
        while not self._end.wait(REAP_EVERY_S):
            self._filesystem.reap()

    def _listen(self) -> None:
        """Until unmounted. After a silence anything may have changed."""
        seen = -1
        while not self._end.is_set():
            try:
                changes = self._source.changes(seen)
            except CkptStoreError as error:
                _log.info("changes are not told at the moment: %s", error)
                self._believed.told_of(False, away=isinstance(error, DaemonUnavailable | WaitTimeout))
                seen = -1
                self._end.wait(PAUSE_S)
                continue
            try:
                if changes.seen != seen:
                    self._tell(changes.paths if seen >= 0 else None)
            except Unmounted:
                return
            seen = changes.seen
            self._believed.told_of(True)

    def _tell(self, paths: tuple[str, ...] | None) -> None:
        self._believed.changed(paths)
        for path in self._below_root(paths):
            above, name = parent_and_name(path)
            self._filesystem.folder_changed(path)
            self._forget_name(above, name, flags=0)
            self._forget_name(above, LATEST, flags=0)
            while above != self._root:
                self._filesystem.folder_changed(above)
                above, name = parent_and_name(above)
                self._forget_name(above, name, flags=_EXPIRE_ONLY)
                self._forget_name(above, LATEST, flags=0)
            self._filesystem.folder_changed(above)

    def _below_root(self, paths: tuple[str, ...] | None) -> set[str]:
        """The changed paths below what is exported; for a change of that itself, or above it, everything in it."""
        prefix = self._root.rstrip("/") + "/"
        if paths is None or any(path == self._root or prefix.startswith(path.rstrip("/") + "/") for path in paths):
            self._filesystem.folder_changed(None)
            with self._filesystem.lock:
                return self._nodes.children(self._root)
        return {path for path in paths if path.startswith(prefix)}

    def _forget_name(self, folder: str, name: str, *, flags: int) -> None:
        with self._filesystem.lock:
            node = self._nodes.of(folder, "", hot=False)
        if node is not None:
            data = name.encode()
            self._device.notify(Notify.INVAL_ENTRY, protocol.INVAL_ENTRY.pack(node.id, len(data), flags) + data + b"\0")
