"""Who is connected: one session per client process, so that a death is noticed and a slot never changes hands.

Over the unix socket a session lives as long as its descriptor connection; over TCP, as long as requests come in.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from ckptstore.errors import Unauthorized


@dataclass
class Session:
    session: str
    pid: int | None  # of a client on this node
    seen_s: float = field(default_factory=time.monotonic)
    dies_with_job: str | None = None


class Sessions:
    """Used from the event loop only."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self.last_use_s = time.monotonic()

    def __len__(self) -> int:
        return len(self._sessions)

    def pids(self) -> list[int]:
        """The clients' processes on this node."""
        return [session.pid for session in self._sessions.values() if session.pid]

    def pid_of(self, session: str) -> int | None:
        """The process of a client on this node. Any thread."""
        found = self._sessions.get(session)
        return found.pid if found is not None else None

    def open_remote(self) -> str:
        session = f"tcp-{os.urandom(12).hex()}"
        self._sessions[session] = Session(session, None)
        return session

    def open_local(self, session: str, pid: int, dies_with_job: str | None) -> None:
        self._sessions[session] = Session(session, pid, dies_with_job=dies_with_job)
        self.last_use_s = time.monotonic()

    def is_open(self, session: str) -> bool:
        return session in self._sessions

    def close(self, session: str) -> None:
        self._sessions.pop(session, None)
        self.last_use_s = time.monotonic()

    def use(self, session: str | None) -> str:
        """`session`, if it is open; Unauthorized if not (a client of the daemon before this one, say)."""
        self.last_use_s = time.monotonic()
        found = self._sessions.get(session or "")
        if found is None:
            raise Unauthorized(
                "this request needs an open session", operation="use session", hint="connect again: the daemon was restarted"
            )
        found.seen_s = self.last_use_s
        return found.session

    def idle_remote(self, idle_s: float) -> list[str]:
        """Sessions of clients on other nodes that have not been heard of for so long."""
        oldest = time.monotonic() - idle_s
        return [s.session for s in self._sessions.values() if s.pid is None and s.seen_s < oldest]

    def dies_with_job(self) -> str | None:
        """Advice, if some client's job would take this daemon with it."""
        return next((s.dies_with_job for s in self._sessions.values() if s.dies_with_job), None)
