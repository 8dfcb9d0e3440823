"""How does something cease to exist, in the catalog first and then in the tiers?

The catalog's transaction makes a publication invisible and queues the first chores; each chore done queues the next, so that no
transaction touches more than one publication's rows in one tier. In each place that may hold the commit record:

    WRITE_TOMBSTONE → DELETE_RECORD → DELETE_OBJECT, a grace period after the deletion → (when all places are through) DELETE_TOMBSTONE

A crash after any step leaves the step's chore, or the next one. A rebuild that finds a record finds its tombstone too, in that tier or
in another, since a tombstone goes only when no record is left anywhere; so nothing deleted comes back. When the last tombstone is
gone, the rows go. Bytes of aborted attempts have no record, and so need no tombstone.

An object that others refer to stays (see `references`): in each place it is deleted by the last of those who needed it, after that
one's record there. Until then its own publication's row stays, too, in the state `remains`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, delete, exists, false, func, insert, literal, null, select, true, union, update

from ckptstore.catalog.core import TIER_PLACE, chunks, tier_of_object, tier_owner
from ckptstore.catalog.model import Act
from ckptstore.catalog.references import ENDED, lock_owners, needed, users, wanted
from ckptstore.catalog.schema import (
    attempts,
    chores,
    drains,
    inner_folders,
    now_s,
    objects,
    owed_records,
    publications,
    references,
    replicas,
    tier_commits,
    tiers,
    tombstones,
    unkept,
)

_COLUMNS = ["publication_id", "act", "tier", "place", "owner", "object_id", "graced", "due_s", "tries"]


def _queue(tx: Connection, rows: Select[Any]) -> int:
    return tx.execute(insert(chores).from_select(_COLUMNS, rows)).rowcount


def _chore(
    publication_id: Any, act: Act, tier: Any, place: Any, owner: Any, object_id: Any = None, *, graced: bool = False, due_s: Any = None
) -> Select[Any]:
    """One chore's columns, as a SELECT to be given a FROM and conditions."""
    return select(
        publication_id,
        literal(act.value),
        tier,
        place,
        owner,
        null() if object_id is None else object_id,
        true() if graced else false(),
        now_s() if due_s is None else due_s,
        literal(0),
    )


def _already_queued(object_id: Any, tier: Any, place: Any) -> ColumnElement[bool]:
    same = chores.alias("queued")
    return exists(select(same.c.chore_id).where(same.c.object_id == object_id, same.c.tier == tier, same.c.place == place))


def queue_object_deletions(tx: Connection, me: str, which: ColumnElement[bool], *, graced: bool = False) -> None:
    """Queue the deletion of bytes that nobody needs wherever they may be: `which` is a condition on `objects`.

    At once, for what was never published; `graced` for what readers may hold.
    """
    belongs = tier_of_object(me, objects.c.node)
    place = TIER_PLACE
    due_s = _last_use_s() if graced else None
    rows = _chore(
        objects.c.attempt_id, Act.DELETE_OBJECT, tiers.c.name, place, tier_owner(me), objects.c.object_id, graced=graced, due_s=due_s
    )
    joined = rows.select_from(objects.join(tiers, belongs)).where(which)
    _queue(tx, joined.where(~_already_queued(objects.c.object_id, tiers.c.name, place)))
    _queue_stray_replicas(tx, me, which, graced, due_s)


def _queue_stray_replicas(tx: Connection, me: str, which: ColumnElement[bool], graced: bool, due_s: Any) -> None:
    owner = func.coalesce(func.nullif(replicas.c.place, ""), literal(me))
    rows = _chore(
        objects.c.attempt_id, Act.DELETE_OBJECT, replicas.c.tier, replicas.c.place, owner, objects.c.object_id, graced=graced, due_s=due_s
    )
    joined = rows.select_from(objects.join(replicas, replicas.c.object_id == objects.c.object_id)).where(which)
    _queue(tx, joined.where(~_already_queued(objects.c.object_id, replicas.c.tier, replicas.c.place)))


def _last_use_s() -> ColumnElement[float]:
    """When the last of those who needed an object was deleted: the grace of its readers counts from there."""
    user = publications.alias("used_by")
    last = select(func.max(user.c.ended_at_s)).where(user.c.publication_id.in_(users(objects.c.object_id))).correlate(objects)
    return func.coalesce(last.scalar_subquery(), now_s())


def delete_publications(tx: Connection, me: str, publication_ids: Iterable[str]) -> None:
    """Make live or superseded publications deleted, and queue what follows. Their entries are the caller's."""
    for ids in chunks(publication_ids):
        gone = publications.c.publication_id.in_(ids)
        lock_owners(tx, ids)
        tx.execute(update(publications).where(gone).values(state="deleted", ended_at_s=now_s()))
        tx.execute(delete(chores).where(chores.c.publication_id.in_(ids), chores.c.act == Act.DELETE_RECORD.value))  # of `leave_tier`
        _queue_tombstones(tx, me, ids)
        _queue_unrecorded(tx, me, ids)
        _stop_drains(tx, needed(ids) & ~wanted())
        _leave_with(tx, me, needed(ids))
        for table in (owed_records, tier_commits, unkept):
            tx.execute(delete(table).where(table.c.publication_id.in_(ids)))


def leave_tier(tx: Connection, me: str, publication_id: str, tier: str) -> None:
    """Take a publication that is kept from a tier out of it: its records there, and the objects that nobody else needs in it."""
    lock_owners(tx, [publication_id])
    belongs = select(tiers.c.name, TIER_PLACE.label("place"), tier_owner(me).label("owner")).distinct()
    joined = belongs.select_from(objects.join(tiers, tier_of_object(me, objects.c.node)))
    there = joined.where(objects.c.attempt_id == publication_id, tiers.c.name == tier).subquery()
    _queue(tx, _chore(literal(publication_id), Act.DELETE_RECORD, there.c.name, there.c.place, there.c.owner))
    for table in (owed_records, tier_commits):
        tx.execute(delete(table).where(table.c.publication_id == publication_id, table.c.tier == tier))
    _give_up(tx, me, tier, needed([publication_id]) & ~wanted(tier))


def _leave_with(tx: Connection, me: str, which: ColumnElement[bool]) -> None:
    """After somebody who needed these objects has gone: those that now only such need as are kept from a tier leave it, if they have a
    good replica in another one."""
    owned = select(unkept.c.tier).join(objects, objects.c.attempt_id == unkept.c.publication_id).where(which)
    user = select(unkept.c.tier).join(references, references.c.attempt_id == unkept.c.publication_id)
    referred = user.join(objects, objects.c.object_id == references.c.object_id).where(which)
    other = replicas.alias("other")
    for tier in sorted(tx.execute(union(owned, referred)).scalars()):
        elsewhere = (other.c.object_id == objects.c.object_id, other.c.tier != tier, ~other.c.damaged, other.c.place.in_(("", me)))
        _give_up(tx, me, tier, which & wanted() & ~wanted(tier) & exists(select(other.c.tier).where(*elsewhere).correlate(objects)))


def _give_up(tx: Connection, me: str, tier: str, gone: ColumnElement[bool]) -> None:
    """Forget objects in a tier, in all places, and queue the deletion of their bytes there; `gone` is a condition on `objects`.

    What was on its way there nobody reads; readers may hold what has arrived.
    """
    for table, graced in ((drains, False), (replicas, True)):
        here = objects.join(table, table.c.object_id == objects.c.object_id)
        owner = func.coalesce(func.nullif(table.c.place, ""), literal(me))
        rows = _chore(objects.c.attempt_id, Act.DELETE_OBJECT, table.c.tier, table.c.place, owner, objects.c.object_id, graced=graced)
        already = _already_queued(objects.c.object_id, table.c.tier, table.c.place)
        in_question = list(tx.execute(select(objects.c.object_id).select_from(here).where(table.c.tier == tier, gone)).scalars())
        for ids in chunks(in_question):
            _queue(tx, rows.select_from(here).where(table.c.tier == tier, objects.c.object_id.in_(ids), ~already))
            tx.execute(delete(table).where(table.c.tier == tier, table.c.object_id.in_(ids)))


def release_references(tx: Connection, me: str, attempt_id: str) -> None:
    """An attempt has ended without a checkpoint: what it alone kept is deleted."""
    owners = lock_owners(tx, [attempt_id])
    if not owners:
        return
    mine = (references.c.attempt_id == attempt_id,)
    held = list(tx.execute(select(references.c.object_id).where(*mine)).scalars())
    tx.execute(delete(references).where(*mine))
    ended = [row.publication_id for row in owners if row.state in ENDED]
    for ids in chunks(held):
        unwanted = objects.c.object_id.in_(ids) & objects.c.attempt_id.in_(ended) & ~wanted()
        _stop_drains(tx, unwanted)
        queue_object_deletions(tx, me, unwanted, graced=True)
        _leave_with(tx, me, objects.c.object_id.in_(ids))
    for owner in ended:
        finish_if_done(tx, owner, me)


def _stop_drains(tx: Connection, which: ColumnElement[bool]) -> None:
    """`which` is a condition on `objects`."""
    tx.execute(delete(drains).where(drains.c.object_id.in_(select(objects.c.object_id).where(which))))


def _queue_tombstones(tx: Connection, me: str, ids: Sequence[str]) -> None:
    """In every place that holds the record, or in which it may be under way."""
    may_hold = (
        select(objects.c.attempt_id.label("publication_id"), tiers.c.name.label("tier"), TIER_PLACE.label("place"))
        .select_from(objects.join(tiers, tier_of_object(me, objects.c.node)))
        .where(objects.c.attempt_id.in_(ids))
    )
    hold = select(tier_commits.c.publication_id, tier_commits.c.tier, tier_commits.c.place).where(tier_commits.c.publication_id.in_(ids))
    where = union(may_hold, hold).subquery()
    owner = func.coalesce(func.nullif(where.c.place, ""), literal(me))
    _queue(tx, _chore(where.c.publication_id, Act.WRITE_TOMBSTONE, where.c.tier, where.c.place, owner))


def queue_tombstones_everywhere(tx: Connection, me: str) -> None:
    """After a rebuild: of every deleted publication that has no chores, a tombstone into every durable tier that this node knows."""
    everywhere = (tiers.c.node == me, tiers.c.active, tiers.c.durable, publications.c.state == "deleted")
    started = chores.alias("started")
    begun = exists(select(started.c.chore_id).where(started.c.publication_id == publications.c.publication_id))
    rows = _chore(publications.c.publication_id, Act.WRITE_TOMBSTONE, tiers.c.name, TIER_PLACE, tier_owner(me))
    _queue(tx, rows.select_from(publications.join(tiers, true())).where(*everywhere, ~begun))


def _queue_unrecorded(tx: Connection, me: str, ids: Sequence[str]) -> None:
    """Replicas, and copies under way, in places that never held the record (a recall to another node): their bytes go after the grace."""
    held = select(replicas.c.object_id, replicas.c.tier, replicas.c.place).join(objects, objects.c.object_id == replicas.c.object_id)
    moving = select(drains.c.object_id, drains.c.tier, drains.c.place).join(objects, objects.c.object_id == drains.c.object_id)
    unwanted = needed(ids) & ~wanted()
    where = union(held.where(unwanted), moving.where(unwanted)).subquery()
    covered = _has_record_work(where.c.tier, where.c.place) | _already_queued(where.c.object_id, where.c.tier, where.c.place)
    owner = func.coalesce(func.nullif(where.c.place, ""), literal(me))
    rows = _chore(objects.c.attempt_id, Act.DELETE_OBJECT, where.c.tier, where.c.place, owner, where.c.object_id, graced=True)
    _queue(tx, rows.select_from(where.join(objects, objects.c.object_id == where.c.object_id)).where(~covered))


def _has_record_work(tier: Any, place: Any) -> ColumnElement[bool]:
    """Condition on `objects`: somebody who needed it still has a record to lose in that place; the object goes after that."""
    first = chores.alias("first")
    steps = (Act.WRITE_TOMBSTONE.value, Act.DELETE_RECORD.value)
    owed = (first.c.publication_id.in_(users(objects.c.object_id)), first.c.tier == tier, first.c.place == place)
    return exists(select(first.c.chore_id).where(*owed, first.c.act.in_(steps)).correlate_except(first))


def tombstone_written(tx: Connection, publication_id: str, tier: str, place: str, owner: str) -> None:
    upserted = select(literal(publication_id), literal(tier), literal(place)).where(
        ~exists().where(tombstones.c.publication_id == publication_id, tombstones.c.tier == tier, tombstones.c.place == place)
    )
    tx.execute(insert(tombstones).from_select(["publication_id", "tier", "place"], upserted))
    _queue(tx, _chore(literal(publication_id), Act.DELETE_RECORD, literal(tier), literal(place), literal(owner)))


def record_deleted(tx: Connection, publication_id: str, tier: str, place: str, owner: str) -> None:
    """Queue the deletion of the objects in that place. Of a shared tier all may be there; of a local one, its node's and the recalled.

    What others still need stays; what others needed goes with this record, if it was the last of theirs here.
    """
    lock_owners(tx, [publication_id])
    rows = _chore(
        objects.c.attempt_id, Act.DELETE_OBJECT, literal(tier), literal(place), literal(owner), objects.c.object_id,
        graced=True, due_s=_last_use_s(),
    ).where(needed([publication_id]), ~wanted(), ~_has_record_work(literal(tier), literal(place)))  # fmt: skip
    if place:
        here = exists().where(replicas.c.object_id == objects.c.object_id, replicas.c.tier == tier, replicas.c.place == place)
        rows = rows.where((objects.c.node == place) | here)
    _queue(tx, rows.where(~_already_queued(objects.c.object_id, literal(tier), literal(place))))
    finish_if_done(tx, publication_id, owner)


def object_deleted(tx: Connection, publication_id: str, object_id: str, tier: str, place: str, owner: str) -> None:
    tx.execute(delete(replicas).where(replicas.c.object_id == object_id, replicas.c.tier == tier, replicas.c.place == place))
    finish_if_done(tx, publication_id, owner)


def tombstone_deleted(tx: Connection, publication_id: str, tier: str, place: str, owner: str) -> None:
    gone = (tombstones.c.publication_id == publication_id, tombstones.c.tier == tier, tombstones.c.place == place)
    tx.execute(delete(tombstones).where(*gone))
    finish_if_done(tx, publication_id, owner)


def finish_if_done(tx: Connection, publication_id: str, me: str) -> None:
    """When a deleted publication has no chores left, its tombstones go; when these are gone, so do its rows."""
    if tx.execute(select(chores.c.chore_id).where(chores.c.publication_id == publication_id).limit(1)).first() is not None:
        return
    owner = func.coalesce(func.nullif(tombstones.c.place, ""), literal(me))
    rows = _chore(tombstones.c.publication_id, Act.DELETE_TOMBSTONE, tombstones.c.tier, tombstones.c.place, owner)
    if _queue(tx, rows.where(tombstones.c.publication_id == publication_id)) == 0:
        purge(tx, publication_id, me)


def purge(tx: Connection, publication_id: str, me: str) -> None:
    """Forget it, but for objects that others refer to; what it referred to itself is one user poorer."""
    owners = [row.publication_id for row in lock_owners(tx, [publication_id]) if row.state in ENDED]
    tx.execute(delete(references).where(references.c.attempt_id == publication_id))
    kept = exists().where(references.c.object_id == objects.c.object_id)
    gone = select(objects.c.object_id).where(objects.c.attempt_id == publication_id, ~kept)
    tx.execute(delete(replicas).where(replicas.c.object_id.in_(gone)))
    tx.execute(delete(objects).where(objects.c.attempt_id == publication_id, ~kept))
    for table in (inner_folders, attempts):
        tx.execute(delete(table).where(table.c.attempt_id == publication_id))
    row = publications.c.publication_id == publication_id
    if tx.execute(select(objects.c.object_id).where(objects.c.attempt_id == publication_id).limit(1)).first() is None:
        tx.execute(delete(publications).where(row))
    else:
        tx.execute(update(publications).where(row).values(state="remains"))
    for owner in owners:
        finish_if_done(tx, owner, me)
