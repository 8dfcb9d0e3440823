"""How is an incremental checkpoint loaded from memory? As the one whole file that the trainer made, while its segment is there.

The stored object holds only what changed, and its digests are of that. So the daemon gives the digests of the segment beside those of
the object; the segment has a name of its own, lies nowhere else, and may be reused at any moment: then the load goes to the objects.
"""

from __future__ import annotations

from ckptstore.errors import ChecksumMismatch, NotFound, TierUnavailable
from ckptstore.wire import FileInfo
from ckptstore_client.reading import VerifiedObject
from ckptstore_client.replicas import MEMORY, Replica, ReplicaSource

#: What says that the segment is not there any more.
NOT_IN_MEMORY = (ChecksumMismatch, NotFound, TierUnavailable)


class _OnlyMemory:
    """Another source of replicas, narrowed to memory."""

    def __init__(self, source: ReplicaSource) -> None:
        self._source = source

    def openable(self, object_id: str, *, recall: bool = True) -> list[str]:
        return [MEMORY]

    def open(self, object_id: str, tier: str) -> Replica:
        return self._source.open(object_id, tier)

    def part(self, object_id: str) -> Replica:
        return self.stream(object_id)

    def stream(self, object_id: str, *, recall: bool = True) -> Replica:
        raise NotFound("the segment is in use for something else", operation="load", subject=object_id, tier=MEMORY)

    def report_damage(self, object_id: str, tier: str, block: int) -> None:
        """A segment that was reused is no damage."""


def whole_file(file: FileInfo, source: ReplicaSource, path: str) -> VerifiedObject:
    """`file.whole`, open for reading. NOT_IN_MEMORY are the errors after which the objects are read."""
    if file.whole is None:
        raise NotFound("it is not in memory", operation="load", subject=path, tier=MEMORY)
    known = file.whole
    whole = FileInfo(
        object_id=known.object_id, name=file.name, rank=file.rank, size_bytes=known.size_bytes, digest=known.digest, blocks=known.blocks
    )
    return VerifiedObject(whole, _OnlyMemory(source), operation="load", path=path)
