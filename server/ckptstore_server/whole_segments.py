"""Which segments in memory hold a rank's whole file, though the object that was stored of it holds only what changed?

The pool keeps such a segment under an id of its own, since its bytes are not the object's. Nothing here is durable, and the digests go
with the segment. Any thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from ckptstore.paths import new_id
from ckptstore_tiers.checksums import BlockDigests
from ckptstore_tiers.memory import Segment, SegmentPool

#: More than a node has slots; a digest list is small, and one whose segment is gone is of no use.
REMEMBERED = 1024


@dataclass(frozen=True)
class WholeSegment:
    """`segment_object_id` is its name in the pool."""

    segment_object_id: str
    digests: BlockDigests


class WholeSegments:
    def __init__(self, pool: SegmentPool) -> None:
        self._pool = pool
        self._known: OrderedDict[str, WholeSegment] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, segment: Segment, object_id: str, digests: BlockDigests) -> None:
        """A HELD segment is, until its slot is needed, what a load of the object's file gives."""
        whole = WholeSegment(new_id(), digests)
        self._pool.keep_as_replica(segment, whole.segment_object_id, digests.size_bytes)
        with self._lock:
            self._known[object_id] = whole
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)

    def find(self, object_id: str) -> WholeSegment | None:
        """None if there is none, or no longer."""
        with self._lock:
            whole = self._known.get(object_id)
        return whole if whole is not None and self._pool.find(whole.segment_object_id) is not None else None
