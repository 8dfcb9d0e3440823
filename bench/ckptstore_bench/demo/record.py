"""What has happened so far? The saves with their times, the moments worth a line, and who was alive when.

Written by the story's thread, by the threads that read events, and by the watcher; one lock guards it all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ckptstore_bench.demo.events import Event

#: Where a save passes, in order.
STAGES = ("snapshot", "nvme", "pfs", "object")


@dataclass
class Save:
    life: str
    step: int
    began_s: float
    stall_s: float | None = None
    attempt_id: str | None = None
    #: stage → seconds since the save was called; `seen` holds those that the watcher saw itself instead of asking the daemon that did it
    reached_s: dict[str, float] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    fate: str = ""


@dataclass(frozen=True)
class Moment:
    at_s: float
    actor: str
    text: str


@dataclass
class Span:
    """Somebody's life on the timeline; `end_mark` says how it ended."""

    actor: str
    began_s: float
    ended_s: float | None = None
    end_mark: str = "│"


class Record:
    def __init__(self, say: Callable[[Moment], None]) -> None:
        self.began_s = time.monotonic()
        self.moments: list[Moment] = []
        self.spans: list[Span] = []
        self.saves: list[Save] = []
        self.losses: list[tuple[str, float]] = []  # a tier that was wiped, and when
        self._say = say
        self._lock = threading.Lock()

    def note(self, actor: str, text: str) -> None:
        moment = Moment(time.monotonic() - self.began_s, actor, text)
        with self._lock:
            self.moments.append(moment)
            self._say(moment)

    def begin(self, actor: str) -> None:
        with self._lock:
            self.spans.append(Span(actor, time.monotonic()))

    def end(self, actor: str, mark: str) -> None:
        with self._lock:
            for span in self.spans:
                if span.actor == actor and span.ended_s is None:
                    span.ended_s, span.end_mark = time.monotonic(), mark

    def lose(self, tier: str) -> None:
        with self._lock:
            self.losses.append((tier, time.monotonic()))

    def observe(self, life: str, event: Event) -> None:
        """Take note of a trainer's event, if it is about a save."""
        with self._lock:
            if event.name == "saving":
                self.saves.append(Save(life, event["step"], event.at_s))
            elif event.name == "saved":
                self.saves[-1].stall_s, self.saves[-1].attempt_id = event["stall_s"], event["attempt"]

    def unfinished(self) -> list[Save]:
        """Saves that the daemon has taken and that are not yet everywhere."""
        with self._lock:
            return [save for save in self.saves if save.attempt_id and len(save.reached_s) < len(STAGES)]

    def reach(self, save: Save, timings_s: dict[str, float], durability: list[str]) -> None:
        """What the daemon says of a save now. A daemon that was restarted knows where it is, and no longer when that came to be."""
        now_s = time.monotonic()
        with self._lock:
            for stage in STAGES:
                if stage in save.reached_s:
                    continue
                if stage in timings_s:
                    save.reached_s[stage] = timings_s[stage]
                elif stage in durability:
                    save.reached_s[stage] = now_s - save.began_s
                    save.seen.add(stage)
