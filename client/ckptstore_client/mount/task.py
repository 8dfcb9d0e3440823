"""What is to be mounted, and what is a serving process told? Plain values that cross to another process as an argument."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class MountOptions:
    """What is to be mounted where."""

    mountpoint: str
    root: str
    #: the daemon's home, or with `folder` a plain folder
    source: str
    folder: bool = False
    passthrough: bool = True
    allow_other: bool = False

    @classmethod
    def read(cls, argument: str) -> MountOptions:
        return cls(**json.loads(argument))


@dataclass(frozen=True)
class Task:
    """What the holder tells a serving process, as its one argument."""

    options: MountOptions
    device_fd: int
    journal_fds: tuple[int, int]
    holder_fd: int
    successor: bool

    def argument(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, argument: str) -> Task:
        given = json.loads(argument)
        return cls(**given | {"options": MountOptions(**given["options"]), "journal_fds": tuple(given["journal_fds"])})
