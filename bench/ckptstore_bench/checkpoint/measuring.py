"""A run of the workload: write phase, the same within a training loop, caches dropped, read phase; every way in turns.

The write phase is MLPerf's: all ranks meet, save, and wait until it is durable; then comes the time between checkpoints. What MLPerf does
not measure is measured after it: ranks compute, and some of the saves happen within. Before the read phase the daemon ends, so that its
memory holds nothing, and before each read its files leave the page cache; the run refuses where they stay.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ckptstore.errors import TierFull
from ckptstore_bench.checkpoint.ranks import Ranks
from ckptstore_bench.checkpoint.ways import STORE, Rank, Saved, name_of
from ckptstore_bench.checkpoint.workload import Workload
from ckptstore_bench.cold import make_cold
from ckptstore_bench.running import Steps
from ckptstore_bench.scratch import Scratch
from ckptstore_bench.shared_state import check_memory
from ckptstore_bench.workspace import Workspace

#: Segments of a rank: two slots, and one that is being released.
SEGMENTS = 3
HEADER_BYTES = 64 << 20
#: An interpreter with torch.
PROCESS_BYTES = 300 << 20
#: Steps that are timed to find how many of them fill an interval.
PROBE_STEPS = 20


@dataclass(frozen=True)
class Run:
    """What the command was asked for. `within`: saves inside a training loop, for each way."""

    workload: Workload
    ways: tuple[str, ...]
    writes: int
    reads: int
    within: int
    interval_s: float
    tier: str | None


@dataclass
class Outcome:
    """What one way did; a list has one entry a checkpoint, and in it one a rank."""

    saves: list[list[Saved]] = field(default_factory=list)
    loads: list[list[float]] = field(default_factory=list)
    #: (steps alone, steps with a save, the save), each rank's
    within: list[tuple[list[float], list[float], list[Saved]]] = field(default_factory=list)


def measure(run: Run, scratch: Scratch, steps: Steps) -> dict[str, Outcome]:
    tier, beside = scratch.beside(run.tier)
    size_bytes = run.workload.size_bytes
    _check_room(run, scratch, size_bytes)
    limit_bytes = SEGMENTS * (size_bytes + run.workload.processes * HEADER_BYTES)
    with Workspace(scratch, memory_limit_bytes=limit_bytes) as workspace:
        files = [tuple(run.workload.files(rank)) for rank in range(run.workload.processes)]
        tiers, group = tuple(known.name for known in scratch.tiers), secrets.token_hex(8)
        ranks = [Rank(i, len(files), files[i], scratch.home, beside, tier, tiers, group) for i in range(len(files))]
        steps.say(f"starting {len(files)} ranks of {run.workload.model}")
        with Ranks(ranks) as all_ranks:
            return _Phases(run, all_ranks, workspace, ranks[0], steps).all()


def _check_room(run: Run, scratch: Scratch, size_bytes: int) -> None:
    # Each way's checkpoints stay until they were read, and one more is written within the training loop.
    need_bytes = len(run.ways) * (run.writes + 1) * size_bytes
    try:
        scratch.check_room(need_bytes)
    except TierFull as error:
        hint = "a smaller --scale, fewer --writes, or another --folder"
        raise TierFull(error.why, operation="bench", tier=error.tier, hint=hint) from error
    # The state, its segments, and what is loaded into new memory.
    check_memory((2 + SEGMENTS) * size_bytes + run.workload.processes * PROCESS_BYTES)


class _Phases:
    def __init__(self, run: Run, ranks: Ranks, workspace: Workspace, first: Rank, steps: Steps) -> None:
        self._run = run
        self._ranks = ranks
        self._workspace = workspace
        self._first = first
        self._steps = steps
        self._outcomes = {way: Outcome() for way in run.ways}

    def all(self) -> dict[str, Outcome]:
        run = self._run
        self._steps.plan((run.writes + run.within + run.reads) * len(run.ways))
        self._ranks.all_do("connect", list(run.ways))
        self._write()
        self._within_training()
        self._ranks.all_do("disconnect")
        self._workspace.stop_daemon()
        self._ranks.all_do("connect", list(run.ways))
        self._read()
        return self._outcomes

    def _write(self) -> None:
        for number in range(1, self._run.writes + 1):
            for way in self._turns(number):
                self._steps.say(f"write {number} of {self._run.writes}: {way}")
                self._outcomes[way].saves.append(self._ranks.all_do("save", way, number))
                self._steps.next()
                time.sleep(self._run.interval_s)  # the computing that MLPerf simulates just so

    def _within_training(self) -> None:
        if not self._run.within:
            return
        probe_s = max(self._ranks.all_do("steps", PROBE_STEPS)) / PROBE_STEPS
        count = max(1, round(self._run.interval_s / probe_s))
        for turn in range(self._run.within):
            number = self._run.writes + turn + 1
            for way in self._turns(turn):
                self._steps.say(f"within a training loop {turn + 1} of {self._run.within}: {way}")
                alone_s = self._ranks.all_do("steps", count)
                found = self._ranks.all_do("save_within_steps", way, number, count)
                self._outcomes[way].within.append((alone_s, [seconds for seconds, _ in found], [saved for _, saved in found]))
                self._ranks.all_do("remove", way, number)
                self._steps.next()

    def _read(self) -> None:
        for turn in range(self._run.reads):
            number = turn % self._run.writes + 1
            for way in self._turns(turn):
                self._steps.say(f"read {turn + 1} of {self._run.reads}: {way}")
                make_cold(self._files(way, number))
                self._outcomes[way].loads.append(self._ranks.all_do("load", way, number, turn == 0))
                self._steps.next()

    def _files(self, way: str, number: int) -> list[Path]:
        if way != STORE:
            return sorted((self._first.folder / name_of(number)).iterdir())
        return sorted(self._stored(name_of(number)))

    def _stored(self, name: str) -> Iterator[Path]:
        """The checkpoint's files in every posix tier: whichever it is loaded from, it is cold."""
        for tier in self._workspace.scratch.tiers:
            if tier.path is not None:
                for found in (tier.path / "objects").rglob("*"):
                    if found.is_file() and any(part == name or part.startswith(f"{name}~") for part in found.parts):
                        yield found

    def _turns(self, number: int) -> list[str]:
        ways, start = list(self._run.ways), number % len(self._run.ways)
        return ways[start:] + ways[:start]
