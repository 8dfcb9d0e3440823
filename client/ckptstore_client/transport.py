"""What differs between a daemon on this node and one over the network: three movements of bytes, and nothing else.

`local` lends memory and descriptors; `remote` streams. Everything above (`Store`) is the same for both: slower, never different.
"""

from __future__ import annotations

from typing import Protocol

from ckptstore.wire import AttemptOpened
from ckptstore_client.api import Api
from ckptstore_client.reading import ReplicaSource
from ckptstore_client.staging import StagedState, Staging


class Transport(ReplicaSource, Protocol):
    """A connection to one daemon, with a session. Thread-safe; of one process. Errors: any of ckptstore.errors."""

    @property
    def api(self) -> Api: ...

    @property
    def alive(self) -> bool:
        """False once the session is known to be over: connect again."""
        ...

    def hand_over(self, opened: AttemptOpened, rank: int, staged: StagedState, staging: Staging) -> None:
        """Copy the state to where the daemon has it, or will have it. At return the tensors may change."""
        ...

    def store_file(self, attempt_id: str, name: str, fd: int, size_bytes: int) -> None:
        """Have the daemon store the file behind `fd` (which stays the caller's) as `name`; durable at return."""
        ...

    def close(self) -> None: ...

    def abandon(self) -> None:
        """In a forked child: let go of the parent's sockets without a word to the daemon."""
        ...
