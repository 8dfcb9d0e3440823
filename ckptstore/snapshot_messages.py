"""What is said about snapshots that somebody asks a running job for.

    POST /v1/snapshots                                    AskSnapshot → SnapshotInfo
    GET  /v1/snapshots/{id}?until=U&timeout_s=S           SnapshotInfo       (U: answered, heard; answers then, or when it is too late)
    GET  /v1/snapshots?path=P&token=T&after=N&timeout_s=S&grace_s=G SnapshotRequests   (what is asked of a job, as soon as something is)
    POST /v1/snapshots/{id}/ranks                         RankHold → SnapshotAgreement
    GET  /v1/snapshots/{id}/agreement?token=T&timeout_s=S SnapshotAgreement  (answers early when all ranks have said how far they go)
    POST /v1/publications/{id}/drain-first                PublicationInfo    (nothing is drained before it from now on)

All ranks of a job must save at the same step, and they make no collective call for it. Each says, once it has heard of a request, at which
step it waits unless it knows more by then (`RankHold`). When all have said so, the greatest of these steps is the one: no rank is past it,
and none passes it without knowing it. What was agreed is binding for the job, whatever becomes of the request.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ckptstore.wire import Count, Message, Text

#: How long a request waits for a job that heeds it, in seconds.
ASKED_FOR_S = 3600.0
#: The longest that a job can have for its last snapshot, in seconds.
MAX_GRACE_S = 3600.0
Token = Annotated[Text, Field(max_length=128)]
Step = Annotated[int, Field(ge=-(1 << 62), lt=1 << 62)]


class AskSnapshot(Message):
    """Ask whoever saves in a folder for a checkpoint now. With a token: ask the ranks of that one job, which ends after it; once a job."""

    path: str
    why: Annotated[Text, Field(max_length=1000)] = ""
    token: Token = ""
    for_s: Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)] = ASKED_FOR_S


class SnapshotRequest(Message):
    """`number` grows with each request; a checkpoint whose attempt was opened after it answers it."""

    request_id: str
    number: Count
    path: str
    why: str
    ends_job: bool


class SnapshotRequests(Message):
    requests: list[SnapshotRequest]


class SnapshotInfo(Message):
    """`ranks` have heard of it, of jobs with `world_size` ranks in all; `at_step` is set when all of a job's ranks have."""

    request_id: str
    path: str
    why: str
    state: Literal["asked", "answered", "expired"]
    ranks: Count = 0
    world_size: Count = 0
    at_step: int | None = None
    checkpoint: str | None = None  # where the checkpoint is that answered it; None also if that was removed since
    step: int | None = None
    durability: tuple[str, ...] = ()


class RankHold(Message):
    """A rank goes no further than to step `holds_at` without knowing more. Saying a later one is heeded until all have spoken."""

    token: Annotated[Token, Field(min_length=8)]
    rank: Count
    world_size: Annotated[int, Field(ge=1, le=1 << 20)]
    holds_at: Step


class SnapshotAgreement(Message):
    """`at_step`: all ranks save at the first safe point whose step is at least that. `closed`: they never will agree, and need not wait."""

    ranks: Count
    at_step: int | None
    closed: bool
