"""What differs between a daemon on this node and one over the network: three movements of bytes, and nothing else.

`local` lends memory and descriptors; `remote` streams. Everything above (`Store`) is the same for both: slower, never different.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ckptstore.wire import AttemptOpened, OpenAttempt, SegmentGrant
from ckptstore_client.api import Api
from ckptstore_client.replicas import ReplicaSource


@dataclass(frozen=True)
class Target:
    """Memory that a rank's file is copied into; with a grant, a segment of the daemon's."""

    view: memoryview
    grant: SegmentGrant | None = None
    #: the attempt that it is for is being joined since it was acquired
    opening: bool = False

    @property
    def key(self) -> Hashable | None:
        """Names the memory where the same comes again at a later save."""
        return None if self.grant is None else self.grant.segment_id


class Transport(ReplicaSource, Protocol):
    """A connection to one daemon, with a session. Thread-safe; of one process. Errors: any of ckptstore.errors."""

    @property
    def api(self) -> Api: ...

    @property
    def descriptors_path(self) -> Path | None:
        """The socket that lends descriptors; None over the network."""
        ...

    @property
    def alive(self) -> bool:
        """False once the session is known to be over: connect again."""
        ...

    @property
    def hands_over_at_once(self) -> bool:
        """Whether handing over is a matter of milliseconds, whatever the size."""
        ...

    def acquire(self, size_bytes: int, opens: OpenAttempt | None = None) -> Target | None:
        """Memory at once, to copy into while the attempt that it `opens` is joined; None: open first, and wait for it there."""
        ...

    def opened(self, target: Target) -> AttemptOpened:
        """What came of the attempt that `target` was acquired for. WaitTimeout: it is not known yet; join it by a request that waits."""
        ...

    def target(self, opened: AttemptOpened, size_bytes: int) -> Target:
        """The memory that comes with the attempt. May wait for an earlier save."""
        ...

    def hand_over(self, opened: AttemptOpened, rank: int, target: Target, size_bytes: int) -> None:
        """The file is whole: at return the daemon has it, and the memory with it. After an error the memory is still the caller's."""
        ...

    def give_back(self, target: Target) -> None:
        """Nothing will be handed over in this memory."""
        ...

    def store_file(self, attempt_id: str, name: str, fd: int, size_bytes: int) -> None:
        """Have the daemon store the file behind `fd` (which stays the caller's) as `name`; durable at return."""
        ...

    def close(self) -> None: ...

    def abandon(self) -> None:
        """In a forked child: let go of the parent's sockets without a word to the daemon."""
        ...
