"""How does the catalog hear that many objects of an attempt have been stored? In one transaction, whose statements work on all of them.

For one object at a time `Attempts.object_stored` says the same. What arrives after its attempt's end is nobody's, and gets a chore.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, bindparam, exists, insert, literal, select, update

from ckptstore.catalog.core import chunks, clock, upsert_all
from ckptstore.catalog.digests import Digests
from ckptstore.catalog.model import AttemptState, TierRow
from ckptstore.catalog.schema import attempts, chores, now_s, objects, replicas
from ckptstore.errors import InvalidInput

UNFINISHED = (AttemptState.OPEN, AttemptState.COMPLETE)
#: Of one object: its digests, and what it takes in the tier if it is compressed there.
Stored = tuple[Digests, int | None]


def store_objects(tx: Connection, node: str, attempt_id: str, stored: Mapping[str, Stored], tier: TierRow, place: str) -> bool:
    """Note sizes, digests and first replicas, by object id. False if the attempt has ended without them: the caller deletes the bytes."""
    moved = update(attempts).where(attempts.c.attempt_id == attempt_id, attempts.c.state.in_(UNFINISHED)).values(moved_at_s=now_s())
    if tx.execute(moved).rowcount:
        _fill(tx, node, stored)
    state = tx.execute(select(attempts.c.state).where(attempts.c.attempt_id == attempt_id)).scalar_one_or_none()
    if state is None or state == AttemptState.ABORTED:
        for object_id in stored if state is not None else ():
            queue_leftover(tx, attempt_id, object_id, tier.name, place, node)
        return False
    _refuse_others(tx, attempt_id, stored, tier)
    _add_replicas(tx, stored, tier, place)
    return True


def _fill(tx: Connection, node: str, stored: Mapping[str, Stored]) -> None:
    filled = {"size_bytes": bindparam("new_size"), "root": bindparam("new_root"), "blocks": bindparam("new_blocks"), "node": node}
    rows = [
        {"id": object_id, "new_size": digests.size_bytes, "new_root": digests.root, "new_blocks": digests.blocks}
        for object_id, (digests, _) in stored.items()
    ]
    tx.execute(update(objects).where(objects.c.object_id == bindparam("id"), objects.c.root.is_(None)).values(**filled), rows)


def _refuse_others(tx: Connection, attempt_id: str, stored: Mapping[str, Stored], tier: TierRow) -> None:
    for ids in chunks(stored):
        known = select(objects.c.object_id, objects.c.root).where(objects.c.object_id.in_(ids), objects.c.attempt_id == attempt_id)
        roots = {row.object_id: row.root for row in tx.execute(known)}
        for object_id in ids:
            if roots.get(object_id) != stored[object_id][0].root:
                why = "other bytes were stored for this object before" if object_id in roots else "it is no object of this attempt"
                raise InvalidInput(why, operation="store object", subject=object_id, tier=tier.name)


def _add_replicas(tx: Connection, stored: Mapping[str, Stored], tier: TierRow, place: str) -> None:
    at_s = clock(tx)
    found: dict[str, Any] = {"verified_at_s": at_s, "used_at_s": at_s, "damaged": False}
    here = {"tier": tier.name, "place": place} | found
    rows = [{"object_id": object_id, "stored_bytes": stored_bytes} | here for object_id, (_, stored_bytes) in stored.items()]
    upsert_all(tx, replicas, rows, ["stored_bytes", *found])


def queue_leftover(tx: Connection, attempt_id: str, object_id: str, tier: str, place: str, owner: str) -> None:
    """A chore for bytes that arrived after their attempt's end, in case the caller dies before it deletes them."""
    there = exists().where(chores.c.object_id == object_id, chores.c.tier == tier, chores.c.place == place)
    row = select(
        literal(attempt_id), literal("delete_object"), literal(tier), literal(place), literal(owner), literal(object_id),
        literal(False), now_s(), literal(0),
    ).where(~there)  # fmt: skip
    columns = ["publication_id", "act", "tier", "place", "owner", "object_id", "graced", "due_s", "tries"]
    tx.execute(insert(chores).from_select(columns, row))


