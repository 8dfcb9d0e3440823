"""What does a contender do? It saves the shared state, or loads what it saved, and says how long each part took.

A contender lives in a process of its own, single-threaded as far as it concerns us: one call at a time. Times are seconds of the
monotonic clock since the call. Whatever it raises ends its part in the run and stands in the report as its reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ckptstore_bench.shape import StateShape


class CannotRun(Exception):
    """This contender cannot take part here; the text says why."""


@dataclass(frozen=True)
class Setup:
    """What a contender's process is told. `disk` is the name of the tier on whose device `folder` lies."""

    shape: StateShape
    state: Path
    home: Path
    folder: Path
    disk: str
    tiers: tuple[str, ...]
    object_tier: str | None = None
    object_url: str | None = None
    object_options: dict[str, Any] = field(default_factory=dict)
    #: How the store saves: memory made before the first save; only what changed written.
    reserve: bool = False
    incremental: bool = False


@dataclass(frozen=True)
class Saved:
    """One save: how long the caller was held up, and when each place had all of it. A limit has no stall, or nothing durable."""

    stall_s: float | None
    reached_s: dict[str, float]
    #: Parts of the stall, or facts beside it, by name.
    parts_s: dict[str, float] = field(default_factory=dict)
    #: What lies on the disk for it, where that is not the whole state.
    written_bytes: int | None = None


class Saver(Protocol):
    """`save` returns when everything it began is durable, so that the disk is quiet afterwards."""

    def save(self, number: int) -> Saved: ...

    def close(self) -> None: ...


class Loader(Protocol):
    """`prepare` saves what will be loaded. `load` gives the tensors, flat; the caller touches them before it stops the clock."""

    def prepare(self) -> list[Path]:
        """The files that must be cold before a load; empty for what lies in no file."""
        ...

    def load(self) -> dict[str, Any]: ...

    def close(self) -> None: ...
