"""What does the catalog need to know of an object's checksums? (The tiers' `BlockDigests` is one; the catalog does not import tiers.)"""

from __future__ import annotations

from typing import Protocol


class Digests(Protocol):
    @property
    def size_bytes(self) -> int: ...

    @property
    def blocks(self) -> bytes:
        """16 bytes for each block of 4 MiB, in order."""
        ...

    @property
    def root(self) -> str:
        """The digest of the whole object, 32 hexadecimal digits."""
        ...
