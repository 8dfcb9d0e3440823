"""The route by which those who remember what is in the tree hear of changes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from ckptstore.tree_messages import TreeChanges
from ckptstore_server.api.dependencies import TheServices, bounded_wait

router = APIRouter(prefix="/v1/tree", tags=["tree"])

Follower = Annotated[str, Query(max_length=64)]
Seen = Annotated[int, Query(ge=-1, lt=1 << 63)]


@router.get("/changes")
async def changes(services: TheServices, seen: Seen = -1, timeout_s: float = 0.0, follower: Follower = "") -> TreeChanges:
    """What changed after `seen`; held until something has, or for `timeout_s`. A `follower` has acted on what changed up to `seen`."""
    return await services.changes.since(seen, bounded_wait(timeout_s), follower)
