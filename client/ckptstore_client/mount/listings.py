"""Which listings are still so? The ones that were read to their end, until a change is told or the time is over for which they were good.

The kernel keeps a listing that it was given; whether it may show it again is asked here at each open. It may have lost it, too, since its
memory is the page cache's: then the lines that are kept here save asking the source again. They are bounded: the listing that was used
longest ago goes first. Thread-safe.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from ckptstore.tree_messages import TreeInfo

#: Lines of all listings that are kept. Each costs 150 bytes; one with its attributes counts as several.
KEPT_LINES, LINES_OF_ATTRIBUTES = 262_144, 8


@dataclass(frozen=True, slots=True)
class FolderLine:
    """`info` is None where the kernel is not to remember the entry."""

    packed: bytes
    info: TreeInfo | None = None


@dataclass(eq=False)
class Listing:
    """One reading of a folder. Pages make it older and never younger."""

    until_s: float = math.inf
    lines: list[FolderLine] | None = field(default_factory=list)
    is_whole: bool = False

    def good_until(self, until_s: float) -> None:
        self.until_s = min(self.until_s, until_s)

    def add(self, number: int, line: FolderLine) -> None:
        """The line with this number, counted from 0. Read with a gap, or of a folder that is too large, none of them is kept."""
        if self.lines is None or self.is_whole or number < len(self.lines):
            return
        if number > len(self.lines) or number >= KEPT_LINES:
            self.lines = None
        else:
            self.lines.append(line)

    @property
    def weight(self) -> int:
        with_attributes = sum(line.info is not None for line in self.lines or ())
        return len(self.lines or ()) + LINES_OF_ATTRIBUTES * with_attributes


class Listings:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: OrderedDict[str, Listing] = OrderedDict()
        #: what of them is whole, by weight
        self._kept: dict[str, int] = {}

    def current(self, path: str) -> Listing | None:
        """The listing of the folder that is still so; it may not be whole yet."""
        with self._lock:
            listing = self._newest.get(path)
            if listing is None or listing.until_s <= time.monotonic():
                return None
            self._newest.move_to_end(path)
            return listing

    def begin(self, path: str) -> Listing:
        """Before the first page is asked for: a change that comes meanwhile ends it."""
        with self._lock:
            before = self._newest.pop(path, None)
            self._kept.pop(path, None)
            listing = Listing()
            if before is not None and before.until_s > time.monotonic():
                listing.until_s = before.until_s  # what the kernel has may be of that one
            self._newest[path] = listing
            return listing

    def end(self, path: str, listing: Listing, count: int) -> None:
        """All its lines were seen, so many."""
        with self._lock:
            if self._newest.get(path) is not listing or listing.lines is None or len(listing.lines) != count:
                return
            listing.is_whole = True
            self._kept[path] = listing.weight
            for oldest in list(self._newest):
                if sum(self._kept.values()) <= KEPT_LINES:
                    break
                if self._kept.pop(oldest, None) is not None:
                    self._newest[oldest].lines, self._newest[oldest].is_whole = None, False

    def changed(self, path: str | None) -> None:
        """What was listed of this folder, or of all, is not so any more."""
        with self._lock:
            if path is None:
                self._newest.clear()
                self._kept.clear()
            else:
                self._newest.pop(path, None)
                self._kept.pop(path, None)
