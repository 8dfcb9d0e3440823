"""Which slot is used again first, and which must yield first when memory is short?

Pure functions over slots; the pool calls them under its lock.
"""

from __future__ import annotations

from collections.abc import Iterable

from ckptstore_tiers.memory_segment import SegmentState, Slot

#: The pool's own owner: what the daemon itself brings into memory. Its slots are not counted and not kept free.
RECALL_OWNER = "recall"


def reuse_order(slot: Slot) -> tuple[bool, int, float]:
    """Empty slots before replicas; the smallest that fits; of empty ones the last used, whose pages every cache and page table still
    knows; of replicas the oldest snapshot, and a drain that reads it does not make it newer."""
    is_replica = slot.state is SegmentState.REPLICA
    return (is_replica, slot.capacity_bytes, slot.kept_at_s if is_replica else -slot.kept_at_s)


def evictable(slots: Iterable[Slot], owner: str) -> list[Slot]:
    """Slots that may go for `owner`, first to go first.

    Slots of gone owners, what the daemon recalled, this owner's, other owners' (else eight ranks under a tight limit would wait
    for each other's spare slots for ever); of each, empty ones first, then the least recently used. A recall takes nobody's slots.
    """
    last = 1 if owner == RECALL_OWNER else 3
    idle = [slot for slot in slots if slot.idle and _group(slot, owner) <= last]
    return sorted(idle, key=lambda slot: (_group(slot, owner), slot.state is SegmentState.REPLICA, slot.used_at_s))


def _group(slot: Slot, owner: str) -> int:
    if slot.owner_gone:
        return 0
    if slot.owner == RECALL_OWNER:
        return 1
    return 2 if slot.owner == owner else 3
