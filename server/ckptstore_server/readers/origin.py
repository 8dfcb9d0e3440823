"""Where do the bytes of a file come from, and what does it mean to have opened it?

Opening pins a `FileVersion`: from then on its origin gives these bytes or says that they are gone, never others. So whoever keeps bytes
under `FileVersion.version` (a cache) may hand them out for that version for ever, whatever happens upstream.

Two kinds: an object of the store, which never changes, and is read from its nearest replica, block by verified block; and a file of
attached storage, which is read on condition that it still is the version that was pinned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class FileVersion:
    """One version of a file of the tree."""

    #: 32 hexadecimal digits that name these bytes and no others: the object's id, or a digest of where the file lies and of its version
    version: str
    path: str
    size_bytes: int
    modified_s: float
    #: for people: "s3://bucket/key", "/a/folder/file"; of an own object, where it is published
    where: str
    sha256: str | None = None
    #: of the store's own; None for attached storage
    object_id: str | None = None
    #: a change that keeps size and time would not be seen
    best_effort: bool = False
    #: the file's name and version as its attached origin knows them; "" for an own object
    name: str = ""
    upstream: str = ""


class Origin(Protocol):
    """Any thread may read; an origin stays usable for as long as the daemon runs, also after it was detached."""

    def read_into(self, file: FileVersion, offset_bytes: int, into: memoryview) -> None:
        """Fill the whole of `into` with the file's bytes from `offset_bytes` on; both may be any number within the file.

        Blocks, for a bounded time. After an error what is in `into` means nothing.
        StaleVersion: upstream has another version now, or none. The tree looks there anew when it is asked the next time.
        TierUnavailable: the origin did not answer, in spite of retries. ChecksumMismatch: no good replica of an own object is left.
        """
        ...


@runtime_checkable
class StreamsParts(Protocol):
    """An origin for which one request for several blocks costs less than one for each."""

    def read_parts(self, file: FileVersion, offset_bytes: int, size_bytes: int, parts: Iterator[memoryview]) -> None:
        """Fill one view after the other with what follows `offset_bytes`, `size_bytes` in all.

        `parts` is asked for the next view, or for its end, when one is full. Errors as of `read_into`; they say nothing of full views.
        """
        ...
