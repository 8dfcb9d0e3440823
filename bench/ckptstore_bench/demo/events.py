"""What does a trainer tell the story, and how? One JSON object a line on its stdout, each with the machine's monotonic clock."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    name: str
    at_s: float  # time.monotonic(), which all processes of a machine share
    facts: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.facts[name]


def report(name: str, **facts: object) -> None:
    """Write an event at once: the process may be killed at the next instruction."""
    sys.stdout.write(json.dumps({"event": name, "at_s": time.monotonic(), **facts}) + "\n")
    sys.stdout.flush()


def read_event(line: str) -> Event:
    facts = json.loads(line)
    return Event(facts.pop("event"), facts.pop("at_s"), facts)
