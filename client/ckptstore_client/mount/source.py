"""What does the mount ask, whoever answers? Six questions about one tree; the rest of the mount knows no daemon.

Paths are absolute in the tree. Errors are those of `ckptstore.errors`: NotFound, StaleVersion (the bytes of that version are gone), and
the retryable ones for a source that does not answer; how long it is insisted is the source's matter, and bounded. Thread-safe.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from ckptstore.tree_messages import FileListing, TreeInfo


@dataclass(frozen=True, slots=True)
class Copy:
    """The node's copy of one version. `fd` is read-only and the owner's to close; -1: the node has none, and `read` gives the bytes."""

    path: str
    version: str
    size_bytes: int
    fd: int
    #: every byte is there, and the file is never written again
    whole: bool
    #: how the source calls the file behind the descriptor
    copy_id: str = ""

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Space:
    """For `df`."""

    total_bytes: int
    free_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened to the tree up to `seen`. `paths` are the topmost that changed; None: it is not known what, so anything may have."""

    seen: int
    paths: tuple[str, ...] | None


class Source(Protocol):
    def info(self, path: str) -> TreeInfo:
        """What is at the path now."""
        ...

    def list(self, path: str, after: str | None) -> FileListing:
        """The folder's entries behind the name `after`, some of them."""
        ...

    def open(self, path: str, version: str) -> Copy:
        """The node's copy of exactly this version."""
        ...

    def need(self, copy: Copy, offset_bytes: int, size_bytes: int) -> Copy | None:
        """Wait until these bytes can be read from the copy. Another copy is returned where the descriptor is of no use any more."""
        ...

    def read(self, copy: Copy, offset_bytes: int, size_bytes: int) -> bytes:
        """The bytes of a copy without descriptor, or of one that cannot keep them."""
        ...

    def space(self) -> Space: ...

    def changes(self, seen: int) -> Changes:
        """Waits for changes after `seen` (-1: none seen yet, answered at once), or returns none after a while. Errors: nothing is told."""
        ...

    def close(self) -> None: ...
