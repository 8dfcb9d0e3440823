"""What client and daemon say to each other: the JSON bodies of the API, which is HTTP under `/v1`, over the unix socket `api.sock` or TCP.

Unknown fields are refused on both sides. Memory and descriptors go over another socket: see `fd_messages`.

    GET    /v1/hello                                      → Hello
    POST   /v1/sessions                                   → SessionOpened      (TCP clients; over the unix socket fd.sock opens one)
    POST   /v1/attempts                    OpenAttempt    → AttemptOpened      (Busy: repeat it, joining is idempotent)
    POST   /v1/attempts/{id}/ranks/{rank}/handover  HandOver → AttemptStatus
    PUT    /v1/attempts/{id}/ranks/{rank}/body   <bytes>  → AttemptStatus      (a save over TCP: body, then handed over)
    PUT    /v1/attempts/{id}/files?name=N        <bytes>  → FileStored         (a put over TCP)
    PUT    /v1/attempts/{id}/bundle              <bytes>  → BundleStored       (many small files of it at once: `ckptstore.bundle`)
    POST   /v1/attempts/{id}/commit                       → AttemptStatus      (kinds folder and file: all files are stored)
    POST   /v1/attempts/{id}/abort         Abort          → AttemptStatus
    GET    /v1/attempts/{id}?wait=TIER&timeout_s=S        → AttemptStatus      (answers early when TIER is reached or it is aborted)
    GET    /v1/publications?path=P                        → PublicationInfo    (P may end with /@latest)
    GET    /v1/publications/{id}?wait=TIER&timeout_s=S    → PublicationInfo    (answers early when TIER is reached)
    GET    /v1/publications/{id}/files?rank=R&name=N&after=A&limit=L → FilePage (rank, name and after are optional)
    POST   /v1/objects/contents            Objects        → bytes              (many small ones: `ckptstore.bundle`, by id)
    GET    /v1/objects/{id}                               → FileInfo
    GET    /v1/objects/{id}/replicas                      → Located            (recalls the object first if no replica is openable here)
    GET    /v1/objects/{id}/content        [Range]        → bytes, 200 or 206  (each block verified before it is sent)
    POST   /v1/objects/{id}/damage         Damage         → Located            (what is left after checking and dropping the bad one)
    GET    /v1/entries?path=P&after=A&limit=L             → EntryPage
    GET    /v1/entry?path=P                               → EntryInfo
    GET    /v1/usage?path=P                               → Usage
    DELETE /v1/entries?path=P&recursive=B                 → Removed
    POST   /v1/entries/move                Move           → Moved
    POST   /v1/verify?path=P                              → one VerifyLine of JSON a line, while it goes on
    GET    /v1/status                                     → Status
    POST   /v1/stop                                       → 202                (unix socket only)
    GET    /metrics                                       → Prometheus text

An error is its HTTP status with `CkptStoreError.to_wire()` as the body.
"""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

#: Of all that client and daemon say to each other, over either socket. Raised with every change that one of the two would not understand
#: if the other were older: they refuse each other when they meet, and not in the middle of a save. `Hello` and `FdHello` stay as they are.
API_VERSION = 4
#: Header that carries the session id that the descriptor socket (or POST /v1/sessions) gave.
SESSION_HEADER = "x-ckptstore-session"
#: The longest that one request waits in the daemon before the client asks again, in seconds.
LONG_POLL_S = 20.0

Base64 = Annotated[
    bytes,
    BeforeValidator(lambda value: base64.b64decode(value, validate=True) if isinstance(value, str) else value),
    PlainSerializer(lambda value: base64.b64encode(value).decode("ascii"), return_type=str, when_used="json"),
]


def _storable_text(text: str) -> str:
    """Text that every database can hold: UTF-8 (lone surrogates are none), and without NUL, which PostgreSQL refuses."""
    text.encode("utf-8")
    if "\x00" in text:
        raise ValueError("it has a NUL character")
    return text


def _storable_json(document: dict[str, Any]) -> dict[str, Any]:
    """What JSON itself can say: no NaN, no infinity."""
    json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8")
    return document


Text = Annotated[str, AfterValidator(_storable_text)]
#: A number that a database column of 64 bits holds.
Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ErrorBody(Message):
    """The body of every answer whose status is not 2xx: `CkptStoreError.to_wire()`."""

    error: str  # which error: see ckptstore.errors
    why: str
    operation: str | None = None
    subject: str | None = None
    tier: str | None = None
    hint: str | None = None


class Hello(Message):
    """GET /v1/hello. Every version can read that of every other: what a newer one adds is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    api: int
    version: str
    store: str
    node: str
    pid: int
    tiers: list[str]  # names, in order
    durable_tiers: list[str]


class SegmentGrant(Message):
    """A slot that the client may write into until it hands it over. Its descriptor comes over the descriptor socket."""

    segment_id: str
    generation: int
    capacity_bytes: int


class OpenAttempt(Message):
    """POST /v1/attempts: join (or repeat joining) an attempt as one rank."""

    path: str
    token: Text = Field(min_length=8, max_length=128)
    ordinal: Count
    rank: Count
    world_size: int = Field(ge=1, le=1 << 20)
    kind: Literal["checkpoint", "folder", "file"] = "checkpoint"
    replace: bool = False
    step: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    metadata: Annotated[dict[str, Any], AfterValidator(_storable_json)] = Field(default_factory=dict)
    size_bytes: Count = Field(0, description="checkpoint: bytes of this rank's file, for its segment")
    incremental: bool = Field(False, description="checkpoint: store only the tensors that differ from the last one in its folder")
    on_busy: Literal["wait", "skip", "fail"] = "wait"
    segment: SegmentGrant | None = Field(None, description="checkpoint: a slot that this session has acquired over the descriptor socket")


class AttemptOpened(Message):
    attempt_id: str
    file_name: str | None = None  # checkpoint: the name of this rank's file
    segment: SegmentGrant | None = None  # None over TCP, and for kinds folder and file
    skipped: bool = False  # on_busy="skip" and no slot was free: the attempt is aborted


class SessionOpened(Message):
    session: str


class FileStored(Message):
    object_id: str
    size_bytes: int
    digest: str


class BundleStored(Message):
    files: int
    size_bytes: int


class HandOver(Message):
    """POST /v1/attempts/{attempt_id}/ranks/{rank}/handover: the segment holds the whole file; the daemon owns it now."""

    segment_id: str
    generation: int
    size_bytes: int = Field(ge=1)
    steps_ended_s: list[float] = Field(
        default_factory=list,
        max_length=1024,
        description="when training's last steps ended, by CLOCK_MONOTONIC; see the daemon's step_times",
    )


class Abort(Message):
    reason: Text = Field(max_length=1000)


class AttemptStatus(Message):
    """GET /v1/attempts/{attempt_id}?wait=TIER&timeout_s=S, and what handover and commit answer."""

    attempt_id: str
    path: str
    state: Literal["open", "complete", "published", "aborted"]
    reason: str | None
    snapshot: bool  # every rank has handed over
    durability: list[str]  # tiers that hold all of it, in order; empty before it is published
    publication_id: str | None
    timings_s: dict[str, float] = Field(default_factory=dict)  # seconds since this daemon opened it: snapshot, nvme, …


class PublicationInfo(Message):
    publication_id: str
    path: str
    kind: Literal["checkpoint", "folder", "file"]
    sequence: int
    world_size: int
    step: int | None
    metadata: dict[str, Any]
    size_bytes: int
    referred_bytes: int = 0  # of its tensors that lie in objects of earlier checkpoints; `size_bytes` are its own files'
    file_count: int
    opened_at_s: float
    published_at_s: float
    durability: list[str]


class WholeFile(Message):
    """An incremental checkpoint's rank as one file with all its tensors, in this node's memory. Openable in tier "memory", if at all."""

    object_id: str  # a name of the segment: no catalog knows it
    size_bytes: int
    digest: str
    blocks: Base64


class FileInfo(Message):
    """One file of a publication: GET /v1/publications/{id}/files; or the object of one: GET /v1/objects/{id}."""

    object_id: str
    name: str
    rank: int
    size_bytes: int
    digest: str
    blocks: Base64 = b""
    whole: WholeFile | None = None


class Objects(Message):
    """POST /v1/objects/contents."""

    object_ids: list[str]


class FilePage(Message):
    files: list[FileInfo]
    after: str | None  # ask again with this; None at the end


class ReplicaInfo(Message):
    tier: str
    kind: Literal["memory", "posix", "object"]
    openable: bool  # whether this daemon can hand out a descriptor for it
    node: str = ""


class Located(Message):
    """GET /v1/objects/{object_id}/replicas, nearest first."""

    object_id: str
    replicas: list[ReplicaInfo]


class Damage(Message):
    """POST /v1/objects/{object_id}/damage: a reader found a block that differs from its checksum."""

    tier: str
    block: Count


class EntryInfo(Message):
    path: str
    name: str
    kind: Literal["folder", "checkpoint", "file"]
    size_bytes: int
    referred_bytes: int = 0  # as in PublicationInfo
    step: int | None = None
    world_size: int | None = None
    published_at_s: float | None = None
    durability: list[str] = Field(default_factory=list)
    publication_id: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    files: int | None = None
    stored_bytes: dict[str, int] = Field(default_factory=dict)  # of `stat`: what its files take in the tiers that compress them
    origin: str | None = None  # of attached storage: where it really lies
    best_effort: bool = False  # of attached storage: a change upstream may not be seen
    modified_s: float | None = None  # of a file of attached storage: when it was last changed there


class EntryPage(Message):
    entries: list[EntryInfo]
    after: str | None  # ask again with this, whatever it looks like; None at the end
    skipped: Count = 0  # as in FileListing


class Usage(Message):
    path: str
    publications: int
    files: int
    size_bytes: int
    referred_bytes: int = 0  # of tensors in objects of earlier checkpoints, once for each checkpoint that uses them
    kept_bytes: int = 0  # in objects of removed checkpoints that others still refer to
    attached: list[str] = Field(default_factory=list)  # paths of attached storage under it, which is not counted
    complete: bool = True  # False: attached storage that has more than could be counted in the time


class Removed(Message):
    removed: list[str]


class Move(Message):
    """POST /v1/entries/move: give what is at a path another one. A folder moves with all below it, and never replaces anything."""

    path: str
    to: str
    replace: bool = False


class Moved(Message):
    moved: list[str]  # the new paths of what was moved


class VerifyLine(Message):
    """One replica or commit record, or an open question about one (`problem`); the last line has `done`."""

    path: str = ""
    tier: str = ""
    size_bytes: int = 0
    problem: str | None = None  # None: the replica is whole
    repaired: bool = False
    record: bool = False  # it is about the commit record of what is published at `path`
    done: bool = False
    replicas: int = 0  # on the last line: how many were read
    records: int = 0  # on the last line: how many were read
    problems: int = 0  # on the last line: how many were found
    elsewhere: int = 0  # on the last line: replicas in other nodes' own tiers, which only `verify` on those nodes can read


class DrainAlarm(Message):
    """A tier does not have in time what was published (`drain_within`), or will not."""

    kind: Literal["late", "at risk"]
    late_s: float
    needed_bytes_s: float | None  # None: it is late, however fast
    reached_bytes_s: float
    what: str


class TierStatus(Message):
    name: str
    kind: str
    location: str
    shared: bool
    durable: bool
    state: Literal["ok", "full", "down"]
    used_bytes: int
    limit_bytes: int | None
    free_bytes: int | None
    rate_bytes_s: float  # written over the last minute
    bandwidth_limit: int | None
    drain_within_s: float | None = None
    alarm: DrainAlarm | None = None
    waiting_objects: int
    waiting_bytes: int
    oldest_waiting_s: float
    last_error: str | None
    details: dict[str, str]


class MemoryStatus(Message):
    limit_bytes: int
    segments: int
    lent_bytes: int
    held_bytes: int
    replica_bytes: int
    free_bytes: int
    dies_with_job: str | None  # advice, if the daemon lives in a job's cgroup


class QuietStatus(Message):
    """How much of this machine drains may use."""

    cpus: float
    allowed_cpus: float  # as of the last look
    nice_counts: bool  # whether their nice means anything to other sessions; the budget does in any case


class CacheStatus(Message):
    """The node's copies of what its readers read."""

    state: Literal["off", "ok", "full", "down"]
    folder: str
    held_bytes: int
    limit_bytes: int  # as the disk is now
    pinned_bytes: int
    files: int
    pins: list[str]
    hits: int  # opens that found all of the file here
    misses: int
    fetched_bytes: int
    saved_bytes: int  # asked for, and not fetched
    last_error: str | None


class ErrorLine(Message):
    at_s: float
    where: str
    what: str


class AttemptLine(Message):
    path: str
    state: str
    joined: int
    snapshots: int
    stored: int
    world_size: int
    age_s: float


class Status(Message):
    """GET /v1/status: everything an operator asks first, in one answer."""

    hello: Hello
    uptime_s: float
    home: str
    catalog: str
    counts: dict[str, int]
    sessions: int
    memory: MemoryStatus
    quiet: QuietStatus | None = None
    cache: CacheStatus | None = None
    tiers: list[TierStatus]
    attempts: list[AttemptLine]
    errors: list[ErrorLine]
    resident_bytes: int
    stopping: bool
