"""How many bytes may the cache hold now? As many as the objects of its tier leave, and not more than it was told.

Three bounds, the least of which counts: `[cache] limit`; the tier's `capacity` up to its high-water mark, less what its objects take; the
device up to the same mark. Nothing is set aside for the cache: it has what nobody needs, and gives way when a save does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ckptstore_tiers.interface import TierUsage
from ckptstore_tiers.posix_space import device_space

UNBOUNDED = 1 << 62


@dataclass(frozen=True)
class Room:
    folder: Path
    limit_bytes: int | None = None
    #: of the tier in whose root the cache lies, if it has one: its capacity, and what its objects take
    capacity_bytes: int | None = None
    tier_usage: Callable[[], TierUsage] | None = None
    mark: float = 0.90
    #: whether the disk is mounted; before that nothing may be written where it should be
    is_ready: Callable[[], bool] = lambda: True

    def allowed_bytes(self, held_bytes: int, *, mark: float | None = None) -> int:
        """What the cache may hold in all, given that it holds so much. Raises OSError if the device does not answer."""
        mark = self.mark if mark is None else mark
        device_bytes, free_bytes = device_space(self.folder)
        free_bytes -= int((1 - mark) * device_bytes)
        bounds = [held_bytes + free_bytes, UNBOUNDED if self.limit_bytes is None else self.limit_bytes]
        if self.capacity_bytes is not None and self.tier_usage is not None:
            bounds.append(int(mark * self.capacity_bytes) - self.tier_usage().used_bytes)
        return max(0, min(bounds))
