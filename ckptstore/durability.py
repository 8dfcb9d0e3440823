"""When is a checkpoint as safe as somebody waits for?"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def is_as_safe_as(wanted: str, durability: Collection[str], order: Sequence[str]) -> bool:
    """Whether `wanted` or a tier deeper than it holds all of a checkpoint. `order`: all tiers, from fastest to most durable.

    Deeper counts: an NVMe replica may be evicted once the parallel file system has it, and a full NVMe is passed over.
    """
    return any(tier in durability for tier in order[order.index(wanted) :])
