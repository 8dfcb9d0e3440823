"""What those who watch a folder are told: GET /v1/watch?path=P[&since=N] as server-sent events, each with one of these as its data.

The event's id is `sequence`: who was cut off gives the last one as `since`, and misses nothing that is still there.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ckptstore.wire import Count, Message


class WatchEvent(Message):
    """`watching`: the answer has begun, and whatever is published from here on is told. `published`: something new is visible.
    `durable`: one more tier holds all of it; tiers that held it already when it was published are told with that. `tagged`: something else
    is said about it now."""

    event: Literal["watching", "published", "durable", "tagged"]
    sequence: Count
    path: str
    kind: Literal["checkpoint", "folder", "file", ""] = ""
    publication_id: str = ""
    step: int | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    size_bytes: Count = 0
    tier: str | None = None  # of `durable`
    durability: tuple[str, ...] = ()
