"""What the catalog speaks of: plain values that cross from the database to the daemon and on to the wire."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What one publish makes visible."""

    CHECKPOINT = "checkpoint"
    FOLDER = "folder"  # files that were put together, atomically
    FILE = "file"


class AttemptState(StrEnum):
    """open → complete (every rank stored) → published; or open | complete → aborted. Each arrow is one conditional transition."""

    OPEN = "open"
    COMPLETE = "complete"
    PUBLISHED = "published"
    ABORTED = "aborted"


class RankState(StrEnum):
    STAGING = "staging"
    SNAPSHOT = "snapshot"  # the daemon owns the bytes: the trainer may die
    STORED = "stored"  # in a durable tier


@dataclass(frozen=True)
class TierRow:
    """A tier as the catalog knows it; `position` orders them from fastest to most durable."""

    name: str
    position: int
    shared: bool
    durable: bool


@dataclass(frozen=True)
class Join:
    """One rank's wish to take part in an attempt. (path, token, ordinal) names the attempt."""

    path: str
    token: str
    ordinal: int
    rank: int
    world_size: int
    kind: Kind
    node: str
    session: str
    replace: bool = False
    step: int | None = None
    metadata: str = "{}"  # JSON


@dataclass(frozen=True)
class NewObject:
    """An object whose id is recorded, before its first byte is written anywhere."""

    object_id: str
    name: str
    key: str


@dataclass(frozen=True)
class Ticket:
    attempt_id: str
    state: AttemptState
    objects: tuple[NewObject, ...]


@dataclass(frozen=True)
class AttemptView:
    attempt_id: str
    path: str
    kind: Kind
    state: AttemptState
    reason: str | None  # why it was aborted
    world_size: int
    step: int | None
    metadata: str
    replace: bool
    joined: int  # ranks that have joined
    snapshots: int  # ranks in SNAPSHOT or STORED
    stored: int
    publication_id: str | None
    opened_at_s: float  # by the database's clock
    idle_s: float  # since the last progress, by the database's clock
    opened: int = 0  # the order of opening


@dataclass(frozen=True)
class StoredFile:
    """One file of an attempt or a publication, with the object that holds its bytes."""

    object_id: str
    name: str  # relative to the publication's path; "" when the publication is one file
    rank: int
    key: str
    node: str  # where it was ingested
    size_bytes: int
    root: str  # BlockDigests.root
    blocks: bytes  # BlockDigests.blocks; b"" where a call says that it leaves them out


@dataclass(frozen=True)
class Reference:
    """An object of an earlier checkpoint that holds tensors of a publication."""

    file: StoredFile  # the object, as the file that it is, or was, of its own publication
    publication_id: str  # that publication: it may be deleted since
    path: str  # where that was published
    rank: int  # which of the referring publication's ranks uses it
    size_bytes: int  # how much of it


@dataclass(frozen=True)
class Publication:
    publication_id: str
    path: str
    kind: Kind
    sequence: int  # publish order over the whole store
    opened: int  # order in which attempts were opened: what @latest goes by
    world_size: int
    step: int | None
    metadata: str
    size_bytes: int
    file_count: int
    opened_at_s: float
    published_at_s: float
    live: bool
    durability: tuple[str, ...]  # durable tiers that hold every object, those referred to as well, and the commit record, in order
    referred_bytes: int = 0  # of tensors that lie in the objects of earlier checkpoints; `size_bytes` are its own
    published_sequence: int = 0  # of the publish, or the last move; `sequence` is of the last change of its metadata, if there was one


@dataclass(frozen=True)
class Entry:
    """A line of a listing."""

    path: str
    name: str
    kind: str  # "folder" (made by what lies below it), or a Kind
    size_bytes: int
    publication: Publication | None
    object_id: str | None = None  # of a file: the object that holds its bytes
    within: Publication | None = None  # the publication that a file or folder is inside of
    attached_from: str | None = None  # of a listing: the URL of what is attached at this folder


@dataclass(frozen=True)
class Attachment:
    """Storage of others, shown below `path`."""

    path: str
    url: str
    refresh_s: float  # how old an answer about what is there may be
    read_only: bool = True
    credentials: str | None = None  # the profile that has them
    options: str = "{}"  # JSON
    attached_at_s: float = 0.0


@dataclass(frozen=True)
class Replica:
    object_id: str
    tier: str
    node: str  # "" for a shared tier
    verified_at_s: float
    damaged: bool
    #: what it takes there, if it is compressed; None: it lies there as it is
    stored_bytes: int | None = None


@dataclass(frozen=True)
class Drain:
    """One object on its way to one tier."""

    object_id: str
    publication_id: str
    path: str  # of the file
    key: str
    tier: str
    size_bytes: int
    sequence: int
    tries: int


@dataclass(frozen=True)
class Backlog:
    """What waits to be drained into one tier."""

    tier: str
    objects: int
    size_bytes: int
    oldest_age_s: float
    last_error: str | None


@dataclass(frozen=True)
class Waiting:
    """What of one publication waits to be drained into one tier, and for how long."""

    age_s: float
    size_bytes: int


class Act(StrEnum):
    """The steps of deleting, in the order in which they may be taken in one tier."""

    WRITE_TOMBSTONE = "write_tombstone"
    DELETE_RECORD = "delete_record"
    DELETE_OBJECT = "delete_object"
    DELETE_TOMBSTONE = "delete_tombstone"


@dataclass(frozen=True)
class Chore:
    """One step of a deletion that this node owes in one tier. Doing it twice is harmless; `chore_done` says that it is done."""

    chore_id: int
    act: Act
    tier: str
    publication_id: str | None
    object_id: str | None
    key: str  # the document's or the object's key in the tier
    document: bytes  # what a tombstone holds


def record_key(publication_id: str) -> str:
    return f"records/{publication_id}.jsonl"


def tombstone_key(publication_id: str) -> str:
    return f"tombstones/{publication_id}.json"


@dataclass(frozen=True)
class Retention:
    """By what the checkpoints in a folder are judged, or in one tier of it."""

    path: str
    policies: str  # JSON: see ckptstore.retention
    tier: str = ""  # what stays in this tier; "": in all that have no policies of their own
    safe_in: str = ""  # which must hold a newer checkpoint before an older one goes; "": the tier, or of a folder the deepest
    trash_s: float = 3600.0  # how long what goes can be had back
    set_at_s: float = 0.0


@dataclass(frozen=True)
class Hold:
    path: str
    publication_id: str
    why: str
    held_at_s: float


@dataclass(frozen=True)
class Trashed:
    """What was at `path` until it was thrown away."""

    path: str
    until_s: float
    publication: Publication


@dataclass(frozen=True)
class SnapshotRequest:
    """Somebody wants a checkpoint of what saves in the folder `path`; with a token, of that one job, which ends after it."""

    request_id: str
    number: int  # what an attempt that answers it is opened after
    path: str
    why: str
    token: str
    answered_by: str | None  # the publication
    is_open: bool  # nothing has answered it, and there is time


@dataclass(frozen=True)
class Agreement:
    """How far the ranks of one job have come in agreeing on a step."""

    token: str
    ranks: int  # that have spoken
    world_size: int  # 0 before one has
    holds_at: int | None  # the furthest that any of them goes without knowing more
    closed: bool  # they have not all spoken, and never will

    @property
    def at_step(self) -> int | None:
        """What they have agreed on, once all have spoken."""
        return self.holds_at if self.ranks == self.world_size > 0 else None
