"""How is a folder listed, however large it is? Page by page from the source, in the order of names; one page in memory for each reader.

An offset is an entry's number plus the two dots. Where a page begins is remembered by the name before it, so that a reader can go back; a
reader that this process does not know (its predecessor's) goes through the pages from the start. The kernel keeps the listing it was given
(CACHE_DIR), and is told at each open whether that is still what is there.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ckptstore.paths import parent_and_name
from ckptstore.tree_messages import TreeInfo
from ckptstore_client.mount import protocol
from ckptstore_client.mount.believed import TOLD_S, Believed, MustWait
from ckptstore_client.mount.nodes import MODES, Node, inode_number
from ckptstore_client.mount.source import Source

#: Of one folder's entries so many come with their attributes in the listing; further ones are looked up when somebody asks.
ENTRIES_WITH_ATTRIBUTES = 16_384


@dataclass(frozen=True, slots=True)
class FolderLine:
    """`info` is None where the kernel is not to remember the entry."""

    packed: bytes
    info: TreeInfo | None = None
    hot: bool = False


class _Reader:
    """One open folder."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lock = threading.Lock()
        #: number of a page's first entry → the name before it
        self.starts: dict[int, str | None] = {0: None}
        self.first = 0
        self.entries: list[TreeInfo] | None = None
        self.after: str | None = None


class Folders:
    def __init__(self, source: Source, believed: Believed, hot_now: Callable[[TreeInfo], bool]) -> None:
        self._source = source
        self._believed = believed
        self._hot_now = hot_now
        self._lock = threading.Lock()
        self._readers: dict[int, _Reader] = {}
        self._handles = itertools.count(1)
        #: folder that the kernel has listed and that has not changed since → until when that is believed
        self._listed: dict[str, float] = {}

    def open(self, path: str) -> tuple[int, bool]:
        """A handle, and whether what the kernel remembers of the folder is still so."""
        with self._lock:
            handle = next(self._handles)
            self._readers[handle] = _Reader(path)
            return handle, self._listed.get(path, 0.0) > time.monotonic()

    def close(self, handle: int) -> None:
        with self._lock:
            self._readers.pop(handle, None)

    def changed(self, path: str | None) -> None:
        """What the kernel remembers of this folder, or of all, is not so any more."""
        with self._lock:
            if path is None:
                self._listed.clear()
            else:
                self._listed.pop(path, None)

    def read(self, handle: int, folder: Node, offset: int, size_bytes: int, *, plus: bool, may_wait: bool) -> list[FolderLine]:
        """The lines from `offset` on that fit."""
        with self._lock:
            reader = self._readers.setdefault(handle, _Reader(folder.path))
        if not reader.lock.acquire(blocking=may_wait):
            raise MustWait
        try:
            return self._fill(reader, folder, offset, size_bytes - (protocol.ENTRY_BYTES if plus else 0), plus, may_wait)
        finally:
            reader.lock.release()

    def _fill(self, reader: _Reader, folder: Node, offset: int, size_bytes: int, plus: bool, may_wait: bool) -> list[FolderLine]:
        lines: list[FolderLine] = []
        extra_bytes = protocol.ENTRY_BYTES if plus else 0
        room_bytes = size_bytes + extra_bytes
        while True:
            if offset < 2:
                line = FolderLine(protocol.folder_entry(folder.ino, offset + 1, (b".", b"..")[offset], MODES["folder"]))
            else:
                try:
                    info = self._entry(reader, offset - 2, may_wait and not lines)
                except MustWait:
                    if lines:  # enough to go on with
                        return lines
                    raise
                if info is None:
                    return lines
                name = parent_and_name(info.path)[1].encode()
                ino = inode_number(info.path, info.version if info.kind == "file" else (info.target or "") if info.kind == "link" else "")
                packed = protocol.folder_entry(ino, offset + 1, name, MODES[info.kind])
                known = plus and offset < ENTRIES_WITH_ATTRIBUTES
                line = FolderLine(packed, info if known else None, known and self._hot_now(info))
            room_bytes -= len(line.packed) + extra_bytes
            if room_bytes < 0:
                return lines
            lines.append(line)
            offset += 1

    def _entry(self, reader: _Reader, number: int, may_wait: bool) -> TreeInfo | None:
        """None: there are no more."""
        while True:
            if reader.entries is not None and 0 <= number - reader.first < len(reader.entries):
                return reader.entries[number - reader.first]
            start = max(first for first in reader.starts if first <= number)
            if reader.entries is not None and start == reader.first and reader.after is None:
                return None
            if not may_wait:
                raise MustWait
            self._load(reader, start)

    def _load(self, reader: _Reader, first: int) -> None:
        asked = self._believed.asked_now()
        if first == 0:
            with self._lock:
                self._listed[reader.path] = time.monotonic() + TOLD_S  # before asking: a change that comes meanwhile takes it out again
        page = self._source.list(reader.path, reader.starts[first])
        self._believed.note(asked, page.entries)
        # Of an empty folder nothing tells who has it. (An empty page at the end says nothing: the one before it was full to the brim.)
        valid_s = min((self._believed.valid_s(info) for info in page.entries), default=0.0 if first == 0 else TOLD_S)
        with self._lock:
            if reader.path in self._listed:
                self._listed[reader.path] = min(self._listed[reader.path], time.monotonic() + valid_s)
        reader.first, reader.entries, reader.after = first, page.entries, page.after
        if page.after is not None:
            reader.starts[first + len(page.entries)] = page.after
