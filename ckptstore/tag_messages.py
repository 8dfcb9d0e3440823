"""Changing what is said about something published: POST /v1/entries/tag, Tag → PublicationInfo; and what may be said.

Tags are metadata, as `save(…, metadata=)` gives it: names, and what JSON can hold. A name has at most 200 bytes, and all of a checkpoint's
metadata together `MAX_METADATA_BYTES`, since it is in every listing and every commit record. Pure functions over values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from ckptstore.errors import InvalidInput
from ckptstore.wire import Message

MAX_NAME_BYTES = 200
#: Of all names and values, as JSON.
MAX_METADATA_BYTES = 65536


class Tag(Message):
    """Set these names to these values, and remove those, in one transaction. The rest stays."""

    path: str
    values: dict[str, Any] = Field(default_factory=dict)
    remove: list[str] = Field(default_factory=list)


def check_tags(values: Mapping[str, Any], remove: Iterable[str], path: str) -> None:
    """InvalidInput, which says what of it cannot be."""
    for name in (*values, *remove):
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES:
            why = f"{name!r:.80} is no name: text of 1 to {MAX_NAME_BYTES} bytes that can be printed"
            raise InvalidInput(why, operation="tag", subject=path)
    if both := values.keys() & {*remove}:
        raise InvalidInput(f"{min(both)!r} is both set and removed", operation="tag", subject=path)
    for name, value in values.items():
        try:
            kept = json.loads(json.dumps(value, allow_nan=False).encode())
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInput(f"the value of {name!r} is not what JSON can hold: {error}", operation="tag", subject=path) from error
        if kept != value:
            raise InvalidInput(f"the value of {name!r} would not come back from JSON as it is", operation="tag", subject=path)


def tagged(metadata: str, values: Mapping[str, Any], remove: Iterable[str], path: str) -> str:
    """The metadata, as JSON, after the change. InvalidInput if it would be too much; names to remove need not be there."""
    gone = {*remove}
    document = {name: value for name, value in json.loads(metadata).items() if name not in gone} | dict(values)
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    if (size_bytes := len(text.encode("utf-8", "surrogatepass"))) > max(MAX_METADATA_BYTES, len(metadata.encode())):
        why = f"its metadata would take {size_bytes} bytes; {MAX_METADATA_BYTES} are allowed"
        raise InvalidInput(why, operation="tag", subject=path, hint="put large things into a file of their own")
    return text
