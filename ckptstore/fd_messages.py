"""What client and daemon say to each other over the descriptor socket: one JSON object a line, with file descriptors beside it.

A client keeps its connection to it open for as long as it lives, and the daemon takes a hang-up as the client's death. How lines and
descriptors travel is `fd_protocol`; everything else that the two say is `wire`.

    FdHello    → FdWelcome
    FdAcquire  → FdReady                a slot of memory, or Busy; the attempt that it is for is opened meanwhile
    FdOpened   → FdAttempt              what came of that
    FdRelease  → FdReady
    FdHandOver → FdReady                the slot's bytes are the daemon's
    FdSegment  → FdReady + descriptor   to write into
    FdOpen     → FdReady + descriptor   to read from
    FdFollow   → FdReady + descriptor   a pipe that tells what of an arriving object can be read
    FdIngest   + descriptor → FdReady   once its bytes are in a durable tier
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ckptstore.wire import AttemptOpened, Count, HandOver, Message, OpenAttempt


class FdHello(Message):
    """First line from the client. The answer is FdWelcome."""

    op: Literal["hello"] = "hello"
    api: int
    pid: int


class FdWelcome(Message):
    session: str


class FdSegment(Message):
    """Ask for the descriptor of a granted segment; answered by FdReady with one descriptor (read and write)."""

    op: Literal["segment"] = "segment"
    segment_id: str


class FdAcquire(Message):
    """Ask for a slot of at least that size, at once or not at all (Busy); answered by FdReady without a descriptor.

    It is the session's until an attempt that was opened with it (`OpenAttempt.segment`) is handed over or aborted, or FdRelease.
    """

    op: Literal["acquire"] = "acquire"
    size_bytes: Count
    #: opened with the slot while the client copies; FdOpened asks what came of it
    opens: OpenAttempt | None = None


class FdOpened(Message):
    """Ask what came of the attempt that FdAcquire named. WaitTimeout: it is not known yet, and POST /v1/attempts waits for it."""

    op: Literal["opened"] = "opened"
    segment_id: str
    generation: int


class FdAttempt(Message):
    """The answer to FdOpened: either of them."""

    opened: AttemptOpened | None = None
    error: dict[str, Any] | None = None


class FdRelease(Message):
    """Give an acquired slot back that no attempt took. Answered by FdReady, also if it is not lent any more."""

    op: Literal["release"] = "release"
    segment_id: str
    generation: int
    why: str = Field("", max_length=1000)  # for the other ranks, where an attempt was opened with it meanwhile


class FdHandOver(Message):
    """The slot holds the whole file of this rank. Answered by FdReady when its bytes are the daemon's, whatever becomes of this process;
    when the catalog knows that, too, and that somebody aborted the attempt, is for who waits for it."""

    op: Literal["hand_over"] = "hand_over"
    attempt_id: str
    rank: int
    slot: HandOver


class FdOpen(Message):
    """Ask for a read-only descriptor of an object's replica; answered by FdReady with one descriptor."""

    op: Literal["open"] = "open"
    object_id: str
    tier: str


class FdIngest(Message):
    """Hand the daemon a file to store as `name` of an attempt of kind folder or file; the descriptor is attached.

    Answered by FdReady once the bytes are in a durable tier.
    """

    op: Literal["ingest"] = "ingest"
    attempt_id: str
    name: str
    size_bytes: int = Field(ge=0)


class FdFollow(Message):
    """Ask for the pipe that tells which blocks of an arriving object can be read (see ckptstore.arrivals); NotFound: it has arrived."""

    op: Literal["follow"] = "follow"
    object_id: str


class FdReady(Message):
    """The answer; or `error` as CkptStoreError.to_wire() wrote it, and no descriptor."""

    size_bytes: int = 0
    segment_id: str = ""
    capacity_bytes: int = 0
    generation: int = 0
    direct: bool = False  # whether the descriptor may be read with O_DIRECT (it was opened so)
    digest: str = ""
    arriving: bool = False  # the file is still being written: `follow` tells what of it can be read
    error: dict[str, Any] | None = None
