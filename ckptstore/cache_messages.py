"""What operators ask of the node's copies: what is kept, what stays, what goes, what is fetched ahead of its readers.

    GET    /v1/cache                              CacheStatus
    GET    /v1/cache/models                       CachedModels    what was used last comes first
    POST   /v1/cache/warm?path=P&pin=B&check=B&wait=B    one WarmLine of JSON a line; the last one has `done`
    PUT    /v1/cache/pins?path=P                  Pinned
    DELETE /v1/cache/pins?path=P                  Pinned          NotFound if nothing is pinned there
    DELETE /v1/cache/copies?path=P                Evicted
"""

from __future__ import annotations

from ckptstore.wire import Message


class CachedModel(Message):
    """What is kept of one folder's files, and what that was good for."""

    path: str
    files: int
    held_bytes: int
    pinned: bool
    #: opens that found all of the file on the node, and those that did not
    hits: int
    misses: int
    fetched_bytes: int
    #: asked for and not fetched
    saved_bytes: int
    used_at_s: float


class CachedModels(Message):
    models: list[CachedModel]


class WarmLine(Message):
    """One file, after it was looked at or fetched; or, with `done`, the sum of all."""

    path: str = ""
    size_bytes: int = 0
    held_bytes: int = 0
    problem: str | None = None
    #: of all that is to be warmed, as known at the beginning
    total_files: int = 0
    total_bytes: int = 0
    done: bool = False
    files: int = 0
    problems: int = 0
    #: it goes on in the daemon, and nobody waits for it
    begun: bool = False


class Pinned(Message):
    paths: list[str]


class Evicted(Message):
    files: int
    size_bytes: int
