"""What a tier at the other end of a network tells of its transfers, for `status` and `/metrics`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class TransferFigures:
    """Now: how many parts and ranges may be on their way, how many are, how large they become. Since the start: refusals, bytes."""

    parallel: int
    in_flight: int
    part_bytes: int
    refusals: int  # the server said 503, SlowDown and the like, or did not answer in time
    moved_bytes: int  # up and down, without what was sent again


@runtime_checkable
class ReportsTransfers(Protocol):
    @property
    def transfers(self) -> TransferFigures | None:
        """None: this tier has none to tell of."""
        ...
