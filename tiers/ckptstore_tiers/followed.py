"""A put that can be followed: somebody reads the blocks out of the unfinished file while later ones are still to come.

The source carries the follower, so that only a tier which stores the blocks as they are, and knows of followers, tells it anything: a
posix tier does. To everybody else the source is just a source. What a follower reads is not yet durable, nor has it a name; it is
verified by whoever reads it.
"""

from __future__ import annotations

from typing import Protocol

from ckptstore_tiers.interface import BlockSource


class Follower(Protocol):
    def begun(self, fd: int) -> None:
        """The unfinished file, empty as yet; called again if it is written anew. The descriptor is the tier's, and closed at its end."""
        ...

    def stored(self, index: int) -> None:
        """Block `index` can be read from the file. Any of the tier's threads."""
        ...


class FollowedSource:
    """Another source, and who follows its put."""

    def __init__(self, source: BlockSource, follower: Follower) -> None:
        self._source = source
        self.follower = follower

    @property
    def size_bytes(self) -> int:
        return self._source.size_bytes

    @property
    def stable(self) -> bool:
        return self._source.stable

    def block(self, index: int, scratch: memoryview) -> memoryview:
        return self._source.block(index, scratch)


def follower_of(source: BlockSource) -> Follower | None:
    return source.follower if isinstance(source, FollowedSource) else None
