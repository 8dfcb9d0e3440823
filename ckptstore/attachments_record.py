"""What do the tiers keep of the attachments, so that a catalog that is lost can have them back? One small document in each.

It says where storage of others is shown, and how it is named; never what opens it: credentials are the name of a profile, and secrets are
refused before they get here. `sequence` is the namespace's number when it was written: of several, the highest counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ckptstore.catalog.model import Attachment
from ckptstore.errors import InvalidInput
from ckptstore.faults import first_faults

#: Its key in every tier.
ATTACHMENTS_KEY = "attachments.json"
#: More than a store has, and less than would hurt.
LIMIT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class AttachmentsRecord:
    store: str
    sequence: int
    attachments: tuple[Attachment, ...]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str
    url: str
    refresh_s: float
    read_only: bool
    credentials: str | None
    options: str
    attached_at_s: float


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal["ckptstore-attachments"] = "ckptstore-attachments"
    version: Literal[1] = 1
    store: str
    sequence: int
    attachments: list[_Line]


def write_attachments(store: str, sequence: int, attachments: Sequence[Attachment]) -> bytes:
    lines = [_Line(**asdict(attachment)) for attachment in attachments]
    return _Document(store=store, sequence=sequence, attachments=lines).model_dump_json(indent=1).encode("utf-8") + b"\n"


def read_attachments(data: bytes, *, subject: str) -> AttachmentsRecord:
    """InvalidInput if it is no such document."""
    try:
        found = _Document.model_validate_json(data)
    except ValidationError as error:
        raise InvalidInput(first_faults(error, "document"), operation="read attachments", subject=subject) from error
    return AttachmentsRecord(found.store, found.sequence, tuple(Attachment(**line.model_dump()) for line in found.attachments))
