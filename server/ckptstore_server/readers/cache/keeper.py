"""What does a copy ask of the cache that keeps it? Room for its blocks, and somebody to tell what became of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ckptstore_server.readers.cache.block_file import BlockFile
    from ckptstore_server.readers.cache.copy import Copy


class Keeper(Protocol):
    """What a copy asks of the cache. Any thread."""

    def make_room(self, copy: Copy, size_bytes: int) -> bool:
        """Whether so many more bytes may be kept, and count from now on; others may have had to go for it."""
        ...

    def disk_is_full(self) -> None:
        """The device has refused bytes for which there was room by our own count."""
        ...

    def disk_failed(self, error: OSError) -> None: ...

    def fetched(self, copy: Copy, size_bytes: int) -> None:
        """Bytes that the origin gave."""
        ...

    def served(self, copy: Copy, size_bytes: int) -> None:
        """Bytes that were asked for."""
        ...

    def dropped(self, copy: Copy, size_bytes: int) -> None:
        """Bytes that count no longer: they could not be written, or are damaged."""
        ...

    def new_file(self, copy: Copy) -> BlockFile | None:
        """An empty file in the place of the copy's; None without a disk that takes it."""
        ...
