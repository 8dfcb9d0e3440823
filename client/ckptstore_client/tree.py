"""How does a program read the one tree: files and folders, whether they were saved, put, or lie in attached storage?

Opening a file pins its version: all that is read from one `TreeFile` belongs together. What is the store's own is read as a load reads
it, from the nearest replica, every 4 MiB block verified here; what lies in attached storage comes through the daemon, which caches it.
Thread-safe; each `TreeFile` may be read by several threads at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType

from ckptstore.errors import DaemonUnavailable, InvalidInput, TierUnavailable
from ckptstore.paths import check_tree_path
from ckptstore.tree_messages import FileListing, TreeInfo
from ckptstore.wire import FileInfo
from ckptstore_client.connection import Connection
from ckptstore_client.files import Progress
from ckptstore_client.mount.daemon_source import DaemonSource
from ckptstore_client.pull import Owner, Pulled, pull
from ckptstore_client.reading import Piece, VerifiedObject
from ckptstore_client.transport import Transport
from ckptstore_tiers.sources import address_of

_PAGE = 1000


class Tree:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def look(self, path: str) -> TreeInfo:
        """What is at `path`; `@latest` in it or at its end is followed. NotFound."""
        path = check_tree_path(path)
        return self._connection.run(lambda transport: transport.api.call("GET", "tree/info", TreeInfo, path=path, resolve="true"))

    def list(self, path: str) -> Iterator[TreeInfo]:
        """What is in a folder, in byte order of the names, page by page; `@latest` is among it, as a link. NotFound, also for a file."""
        path = check_tree_path(path, operation="list")
        after: str | None = ""
        while after is not None:
            page = self._connection.run(partial(_page, path=path, after=after))
            yield from page.entries
            after = page.after

    def open(self, path: str) -> TreeFile:
        """The file as it is now. NotFound; InvalidInput if it is a folder."""
        info = self.look(path)
        if info.kind != "file":
            raise InvalidInput("it is a folder", operation="open", subject=path, hint="list it")
        opened = TreeFile(self._connection, info)
        opened.hold()
        return opened

    def pull(
        self, path: str, local: str | Path, *, replace: bool = False, owner: Owner | None = None, progress: Progress | None = None
    ) -> Pulled:
        """Plain files of this machine of what is at `path`, cloned where the disk can; all of it at once, or nothing. AlreadyExists."""
        path = check_tree_path(path, operation="pull")
        transport = self._connection.transport()
        source = DaemonSource(transport.api, transport.descriptors_path)
        try:
            return pull(source, path, Path(local).absolute(), replace=replace, owner=owner, progress=progress)
        finally:
            source.close()


def _page(transport: Transport, *, path: str, after: str) -> FileListing:
    return transport.api.call("GET", "tree/list", FileListing, path=path, after=after, limit=_PAGE)


class TreeFile:
    """One version of a file, open for reading. A context manager."""

    def __init__(self, connection: Connection, info: TreeInfo) -> None:
        self.info = info
        self._connection = connection
        self._lock = threading.Lock()
        self._object: VerifiedObject | None = None

    def __enter__(self) -> TreeFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            if self._object is not None:
                self._object.__exit__()
                self._object = None

    def hold(self) -> None:
        """Keep the version within reach: what is replaced or removed after this is still read, on its own node for as long as this is open,
        over the network for the grace time of deletions."""
        if self.info.origin is None:
            self._verified().hold()

    def read(self, start: int, stop: int) -> bytearray:
        """The bytes from `start` to `stop`, of which the file may have fewer."""
        data = bytearray(max(0, min(stop, self.info.size_bytes) - start))
        self.read_into(start, memoryview(data))
        return data

    def read_into(self, start: int, into: memoryview) -> None:
        """Fill `into`, which must lie within the file. StaleVersion if the version that was opened is gone; ChecksumMismatch."""
        if not len(into):
            return
        try:
            self._fill(start, into)
        except DaemonUnavailable:  # it was restarted: its descriptors are gone, the version is not
            self.close()
            self._fill(start, into)

    def _fill(self, start: int, into: memoryview) -> None:
        if self.info.origin is None:
            self._verified().fill([Piece(start, start + len(into), address_of(into))])
        else:
            self._stream(start, into)

    def _verified(self) -> VerifiedObject:
        with self._lock:
            if self._object is None:
                route = f"objects/{self.info.version}"
                found = self._connection.run(lambda transport: transport.api.call("GET", route, FileInfo))
                file = found.model_copy(update={"name": ""})
                self._object = VerifiedObject(file, self._connection.transport(), operation="read", path=self.info.path)
            return self._object

    def _stream(self, start: int, into: memoryview) -> None:
        api = self._connection.transport().api
        wanted = {"range": f"bytes={start}-{start + len(into) - 1}"}
        filled = 0
        with api.stream("GET", "tree/content", headers=wanted, path=self.info.path, version=self.info.version) as response:
            for chunk in response.iter_raw():
                part = chunk[: len(into) - filled]
                into[filled : filled + len(part)] = part
                filled += len(part)
        if filled < len(into):
            why = f"the answer ended after {filled} of {len(into)} bytes"
            raise TierUnavailable(why, operation="read", subject=self.info.path)
