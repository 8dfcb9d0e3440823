"""What must attached storage be able to tell and to give? One implementation for each kind; all of them only read.

Names are relative to what was attached, without slashes at either end; "" is the attached folder itself. Who calls has checked that each
part of a name may be one in a path of ours (so none is `..`); an implementation leaves out, and counts, what it finds under other names.
All calls block, and any thread may make them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ckptstore.errors import InvalidInput
from ckptstore.paths import MAX_SEGMENT_BYTES, check_segment
from ckptstore_server.readers.origin import FileVersion
from ckptstore_server.readers.origins.gate import Gate


@dataclass(frozen=True)
class Found:
    """A file or a folder, as it is now."""

    name: str
    is_folder: bool = False
    size_bytes: int = 0
    modified_s: float = 0.0
    #: of a file: its version in the storage's own words
    upstream: str = ""
    #: another version may look the same
    best_effort: bool = False
    #: so young that a change may not show yet: look again after so many seconds, and read only what is unchanged then
    settles_in_s: float = 0.0


@dataclass(frozen=True)
class FoundPage:
    entries: tuple[Found, ...]
    #: give it as `after` to go on; None: that was all
    after: str | None = None
    #: of this page: what was left out, since no path of ours can name it, or it is neither file nor folder
    skipped: int = 0


class Unbounded(Protocol):
    """A storage that may take for ever: see `bounded`."""

    #: what distinguishes this place from all others, of whatever kind
    identity: str

    def look(self, name: str) -> Found:
        """NotFound; TierUnavailable if the storage does not answer."""
        ...

    def page(self, folder: str, after: str, limit: int) -> FoundPage:
        """At most `limit` entries that follow `after`: "" at the beginning, then what the last page said. NotFound without a folder."""
        ...

    def read_into(self, file: FileVersion, offset_bytes: int, into: memoryview) -> None:
        """As `Origin.read_into`: the bytes of `file.upstream`, or StaleVersion."""
        ...

    def where(self, name: str) -> str:
        """For people."""
        ...

    def close(self) -> None: ...


class Storage(Unbounded, Protocol):
    """A storage that answers in bounded time, and at once that it is down while it is known to be."""

    gate: Gate


def is_storable(name: str) -> bool:
    """Whether a name that was found in a storage may be one in a path of ours."""
    if name.isascii() and name.isprintable() and 2 < len(name) <= MAX_SEGMENT_BYTES and not name.startswith("@") and "/" not in name:
        return True  # nearly all, in a folder of a million
    try:
        check_segment(name, whole=name)
    except InvalidInput:
        return False
    return True


def inside(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
