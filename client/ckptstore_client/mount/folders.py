"""How is a folder listed, however large it is? Page by page from the source, in the order of names; one page in memory for each reader.

An offset is an entry's number plus the two dots. Where a page begins is remembered by the name before it, so that a reader can go back; a
reader that this process does not know (its predecessor's) goes through the pages from the start. While the kernel is given one page, the
next one is asked for.

The kernel keeps the listing it was given (CACHE_DIR), and is told at each open whether that is still what is there: of what the store holds
until a change is told, of attached storage until its refresh time is over, or it is detached, which is told, too. So long it is kept here
as well, see `listings`.
"""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from ckptstore.paths import parent_and_name
from ckptstore.tree_messages import FileListing, TreeInfo
from ckptstore_client.mount import protocol
from ckptstore_client.mount.believed import TOLD_S, Believed, MustWait
from ckptstore_client.mount.listings import FolderLine, Listing, Listings
from ckptstore_client.mount.nodes import MODES, Node, inode_number
from ckptstore_client.mount.source import Source

#: Of one folder's entries so many come with their attributes in the listing; further ones are looked up when somebody asks.
ENTRIES_WITH_ATTRIBUTES = 16_384
#: Pages that are asked for at once before anybody wants them: one for each of so many readers of large folders.
PAGES_AHEAD = 4


class _Reader:
    """One open folder."""

    def __init__(self, path: str, kept: list[FolderLine] | None) -> None:
        self.path = path
        #: all there is, if that is known
        self.kept = kept
        self.listing: Listing | None = None
        self.lock = threading.Lock()
        #: number of a page's first entry → the name before it
        self.starts: dict[int, str | None] = {0: None}
        self.first = 0
        self.entries: list[TreeInfo] | None = None
        self.after: str | None = None
        #: the page behind the one at hand, and when it was asked for
        self.next: Future[FileListing] | None = None
        self.next_asked: tuple[int, float] = (0, 0.0)


class Folders:
    def __init__(self, source: Source, believed: Believed) -> None:
        self._source = source
        self._believed = believed
        self._lock = threading.Lock()
        self._readers: dict[int, _Reader] = {}
        self._handles = itertools.count(1)
        self._listings = Listings()
        self._ahead = ThreadPoolExecutor(PAGES_AHEAD, thread_name_prefix="ckptstore-list")

    def open(self, path: str) -> tuple[int, bool]:
        """A handle, and whether what the kernel remembers of the folder is still so."""
        current = self._listings.current(path)
        with self._lock:
            handle = next(self._handles)
            self._readers[handle] = _Reader(path, current.lines if current is not None and current.is_whole else None)
            return handle, current is not None

    def close(self, handle: int) -> None:
        with self._lock:
            reader = self._readers.pop(handle, None)
        if reader is not None and reader.next is not None:
            reader.next.cancel()

    def changed(self, path: str | None) -> None:
        """What the kernel remembers of this folder, or of all, is not so any more."""
        self._listings.changed(path)

    def read(self, handle: int, folder: Node, offset: int, size_bytes: int, *, plus: bool, may_wait: bool) -> list[FolderLine]:
        """The lines from `offset` on that fit."""
        with self._lock:
            reader = self._readers.setdefault(handle, _Reader(folder.path, None))
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
                    found = self._line(reader, folder, offset - 2, may_wait and not lines)
                except MustWait:
                    if lines:  # enough to go on with
                        return lines
                    raise
                if found is None:
                    return lines
                line = found
            room_bytes -= len(line.packed) + extra_bytes
            if room_bytes < 0:
                return lines
            lines.append(line)
            offset += 1

    def _line(self, reader: _Reader, folder: Node, number: int, may_wait: bool) -> FolderLine | None:
        """None: there are no more."""
        if reader.kept is not None:
            return reader.kept[number] if number < len(reader.kept) else None
        info = self._entry(reader, number, may_wait)
        if info is None:
            if reader.listing is not None:
                self._listings.end(reader.path, reader.listing, number)
            return None
        name = parent_and_name(info.path)[1].encode()
        ino = inode_number(info.path, info.version if info.kind == "file" else (info.target or "") if info.kind == "link" else "")
        packed = protocol.folder_entry(ino, number + 3, name, MODES[info.kind])
        line = FolderLine(packed, info if number + 2 < ENTRIES_WITH_ATTRIBUTES else None)
        if reader.listing is not None:
            reader.listing.add(number, line)
        return line

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
        if reader.listing is None and first == 0:
            reader.listing = self._listings.begin(reader.path)
        page, asked, asked_s = self._page(reader, first)
        self._believed.note(asked, page.entries)
        if reader.listing is not None:
            reader.listing.good_until(asked_s + self._valid_s(page, first))
        reader.first, reader.entries, reader.after = first, page.entries, page.after
        if page.after is not None:
            reader.starts[first + len(page.entries)] = page.after
            reader.next_asked = self._believed.asked_now(), time.monotonic()
            reader.next = self._ahead.submit(self._source.list, reader.path, page.after)

    def _page(self, reader: _Reader, first: int) -> tuple[FileListing, int, float]:
        """The page that begins there, and when it was asked for, by the changes told and by the clock."""
        ahead, reader.next = reader.next, None
        if ahead is not None and reader.entries is not None and first == reader.first + len(reader.entries):
            return ahead.result(), *reader.next_asked
        if ahead is not None:
            ahead.cancel()
        asked, asked_s = self._believed.asked_now(), time.monotonic()
        return self._source.list(reader.path, reader.starts[first]), asked, asked_s

    def _valid_s(self, page: FileListing, first: int) -> float:
        """For how long the kernel may show this page from its memory."""
        if page.good_for_s is not None and self._believed.is_told_of:
            return page.good_for_s
        # Of an empty folder nothing tells who has it. (An empty page at the end says nothing: the one before it was full to the brim.)
        return min((self._believed.valid_s(info) for info in page.entries), default=0.0 if first == 0 else TOLD_S)
