"""What is said about keeping checkpoints: a folder's policies, what they decide, what is held, and what waits in the trash.

    POST   /v1/retention[?dry_run=true]   SetRetention → RetentionPlan    dry_run: only say what would go
    GET    /v1/retention                  RetentionList
    DELETE /v1/retention?path=P[&tier=T]  RetentionList: what was said until now
    POST   /v1/holds                      HoldPath → HoldInfo
    GET    /v1/holds                      HoldList
    DELETE /v1/holds?path=P               HoldInfo
    GET    /v1/trash                      TrashList
    POST   /v1/trash/undo                 UndoPath → Restored
    DELETE /v1/trash[?everything=true]    Removed
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ckptstore.retention import Policies
from ckptstore.wire import Count, Message

#: How long what a policy lets go can be had back, unless said otherwise, in seconds.
TRASH_S = 3600.0
Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]
Reason = Annotated[str, Field(max_length=1000)]


class SetRetention(Message):
    """Judge the checkpoints directly in a folder by these policies: what none of them keeps goes once something newer is in `safe_in`."""

    path: str
    policies: Policies
    tier: str = ""  # what stays in this tier; "": in all that have no policies of their own
    safe_in: str = ""  # "": the tier itself, or of a folder the deepest that its policies go for
    trash_s: Seconds = TRASH_S


class RetentionInfo(SetRetention):
    set_at_s: float


class RetentionList(Message):
    folders: list[RetentionInfo]


class InTier(Message):
    """What becomes of a checkpoint in one tier. Absent: it is not brought there."""

    tier: str
    fate: Literal["stays", "goes", "absent"]
    why: str = ""


class Judged(Message):
    path: str
    step: int | None
    size_bytes: Count
    goes: bool  # as a whole
    why: str  # which policy keeps it, or what else does
    tiers: list[InTier] = Field(default_factory=list)  # where single tiers have policies: in each durable tier


class RetentionPlan(Message):
    """What the policies say of a folder now, oldest checkpoint first. What goes does so within seconds, unless it was a dry run."""

    path: str
    checkpoints: list[Judged]


class HoldPath(Message):
    path: str
    why: Reason = ""


class HoldInfo(Message):
    path: str
    publication_id: str
    why: str
    held_at_s: float


class HoldList(Message):
    holds: list[HoldInfo]


class TrashedInfo(Message):
    path: str  # where it was
    until_s: float
    publication_id: str
    step: int | None
    size_bytes: Count


class TrashList(Message):
    trashed: list[TrashedInfo]


class UndoPath(Message):
    path: str


class Restored(Message):
    path: str
