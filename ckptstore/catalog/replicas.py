"""Where does an object lie, and may it go from there?

A replica is the fact that an object is whole and verified in a tier (in `place`: "" for a shared tier, else the node). Whatever changes
what a publication has in a tier locks the publication's row first, so that "the last drain of this tier arrived" and "a deeper replica
exists" are seen by one transaction at a time.

A replica that is added takes its drain with it; when that was the last one of the publication in that place, the commit record is owed.
A replica that is dropped or found damaged ends the record's validity there: the tier no longer counts towards durability until the
object is back and the record is written again. The bytes of a dropped replica get a chore in the same transaction.

All of that holds for every publication that needs the object: its own, and those that refer to it. What an attempt pins is not dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, exists, false, func, insert, null, or_, select, update

from ckptstore.catalog.core import Core, chunks, insert_unless_there, upsert
from ckptstore.catalog.model import Act, Replica, StoredFile, TierRow
from ckptstore.catalog.references import KNOWN, needed_objects, wanted
from ckptstore.catalog.schema import chores, drains, now_s, objects, owed_records, publications, references, replicas, tier_commits, unkept
from ckptstore.catalog.views import FILE_COLUMNS, file_columns, stored_file
from ckptstore.errors import NotFound


@dataclass(frozen=True)
class _Needed:
    """An object that was published, with the rows of all who need it held."""

    owner: Row[*tuple[Any, ...]]  # its own publication, with what a drain needs to know of both
    users: Sequence[Row[*tuple[Any, ...]]]  # publications that need it and can be read; the owner, if it can be
    pinned: bool  # whether an attempt that has not ended refers to it

    @property
    def is_wanted(self) -> bool:
        return self.pinned or bool(self.users)


class Replicas(Core):
    def replicas(self, object_id: str) -> list[Replica]:
        """All replicas of an object, on all nodes, damaged ones too."""
        query = select(replicas).where(replicas.c.object_id == object_id).order_by(replicas.c.tier, replicas.c.place)
        rows = self._db.read("list replicas", lambda tx: tx.execute(query).all(), object_id)
        return [Replica(row.object_id, row.tier, row.place, row.verified_at_s, row.damaged, row.stored_bytes) for row in rows]

    def whereabouts(self, object_ids: Sequence[str]) -> dict[str, tuple[StoredFile, set[str]]]:
        """Of many objects at once: the file, and the tiers that have a good replica within this node's reach. Unknown ones are left out."""
        here = (replicas.c.object_id == objects.c.object_id) & ~replicas.c.damaged & replicas.c.place.in_((self.node, ""))

        def work(tx: Connection) -> dict[str, tuple[StoredFile, set[str]]]:
            found: dict[str, tuple[StoredFile, set[str]]] = {}
            for ids in chunks(object_ids):
                query = select(*file_columns(True), replicas.c.tier).select_from(objects.join(replicas, here))
                for row in tx.execute(query.where(objects.c.object_id.in_(ids))):
                    found.setdefault(row.object_id, (stored_file(row), set()))[1].add(row.tier)
            return found

        return self._db.read("list replicas", work)

    def stored_bytes(self, publication_id: str) -> dict[str, int]:
        """What the publication's own files take in each tier in which some of them are compressed, on all nodes together."""
        query = (
            select(replicas.c.tier, func.sum(func.coalesce(replicas.c.stored_bytes, objects.c.size_bytes)))
            .join(objects, objects.c.object_id == replicas.c.object_id)
            .where(objects.c.attempt_id == publication_id, ~replicas.c.damaged)
            .group_by(replicas.c.tier)
            .having(func.count(replicas.c.stored_bytes) > 0)
        )
        rows = self._db.read("stat", lambda tx: tx.execute(query).all(), publication_id)
        return {tier: int(size_bytes) for tier, size_bytes in rows}

    def add_replica(self, object_id: str, tier: str, *, stored_bytes: int | None = None) -> bool:
        """Record that the object is whole in the tier, and what it takes there if it is compressed. False if nobody wants it (there): the
        caller deletes the bytes (a chore is queued, too)."""
        row = self._tier(tier)
        place = self._place(row)

        def work(tx: Connection) -> bool:
            found = _locked(tx, object_id)
            if found is None:
                return False
            arrived = delete(drains).where(drains.c.object_id == object_id, drains.c.tier == tier, drains.c.place == place)
            if not found.is_wanted or not is_wanted_in(tx, object_id, tier):
                tx.execute(arrived)
                _queue_deletion(tx, found.owner.publication_id, object_id, tier, place, self.node)
                return False
            tx.execute(delete(chores).where(chores.c.object_id == object_id, chores.c.tier == tier, chores.c.place == place))
            found_now = {"verified_at_s": now_s(), "used_at_s": now_s(), "damaged": False, "stored_bytes": stored_bytes}
            upsert(tx, replicas, {"object_id": object_id, "tier": tier, "place": place} | found_now, list(found_now))
            if tx.execute(arrived).rowcount and row.durable:
                for user in found.users:
                    self._note_if_whole(tx, user, row, place)
            return True

        return self._db.write("add replica", work, object_id)

    def mark_damaged(self, object_id: str, tier: str) -> None:
        """Take a replica out of use. In a durable tier in which the object belongs, its repair is queued as a drain."""
        row = self._tier(tier)
        place = self._place(row)

        def work(tx: Connection) -> None:
            found = _locked(tx, object_id)
            here = (replicas.c.object_id == object_id, replicas.c.tier == tier, replicas.c.place == place)
            marked = tx.execute(update(replicas).where(*here, ~replicas.c.damaged).values(damaged=True)).rowcount
            if not marked or found is None or not found.is_wanted:
                return
            _records_are_void(tx, found.users, tier, place)
            if row.durable and (row.shared or found.owner.node == self.node) and is_wanted_in(tx, object_id, tier):
                queue_drain(tx, found.owner, tier, place, self.node)

        self._db.write("mark damaged", work, object_id)

    def drop_replica(self, object_id: str, tier: str) -> bool:
        """Give up a replica if another good one is in a deeper durable tier; a damaged one, if any good one is in a durable tier.

        True when it was dropped: then the caller deletes the bytes. A chore for that is queued in the same transaction.
        """
        row = self._tier(tier)
        place = self._place(row)

        def work(tx: Connection) -> bool:
            found = _locked(tx, object_id)
            here = (replicas.c.object_id == object_id, replicas.c.tier == tier, replicas.c.place == place)
            replica = tx.execute(select(replicas.c.damaged).where(*here)).first()
            if found is None or replica is None or not found.is_wanted:
                return False
            if found.pinned and not replica.damaged:
                return False
            if not self._has_other(tx, object_id, row, place, anywhere=replica.damaged):
                return False
            tx.execute(delete(replicas).where(*here))
            if not replica.damaged:  # an eviction; the drain of a damaged replica is its repair, and stays
                tx.execute(delete(drains).where(drains.c.object_id == object_id, drains.c.tier == tier, drains.c.place == place))
            _records_are_void(tx, found.users, tier, place)
            _queue_deletion(tx, found.owner.publication_id, object_id, tier, place, self.node)
            return True

        return self._db.write("drop replica", work, object_id)

    def is_wanted_in(self, object_id: str, tier: str) -> bool:
        """Whether anybody wants the object in that tier; not, if all who need it are kept from there."""
        return self._db.read("look up object", lambda tx: is_wanted_in(tx, object_id, tier), object_id)

    def touch(self, object_ids: Iterable[str], tier: str) -> None:
        """Note that these replicas are in use, so that eviction takes others first."""
        place = self._place(self._tier(tier))

        def work(tx: Connection) -> None:
            for ids in chunks(object_ids):
                used = update(replicas).where(replicas.c.object_id.in_(ids), replicas.c.tier == tier, replicas.c.place == place)
                tx.execute(used.values(used_at_s=now_s()))

        object_ids = list(object_ids)
        self._db.write("touch", work, tier)

    def eviction_candidates(self, tier: str, *, limit: int) -> list[StoredFile]:
        """Objects whose replica here may go, oldest use first.

        Each has a good replica in a deeper tier, covered there by the commit record of everybody who needs it; none is pinned.
        """
        row = self._tier(tier)
        other = replicas.alias("other")
        covered = exists(
            select(other.c.object_id).where(
                other.c.object_id == replicas.c.object_id, ~other.c.damaged, self._deeper(other.c, row),
                or_(publications.c.state.not_in(KNOWN), _has_record(publications.c.publication_id, other.c)), ~_uncovered_user(other.c),
            )
        )  # fmt: skip
        query = (
            select(*FILE_COLUMNS)
            .select_from(replicas)
            .join(objects, objects.c.object_id == replicas.c.object_id)
            .join(publications, publications.c.publication_id == objects.c.attempt_id)
            .where(replicas.c.tier == tier, replicas.c.place == self._place(row), ~replicas.c.damaged)
            .where(wanted(), covered)
            .order_by(replicas.c.used_at_s)
            .limit(limit)
        )
        return self._db.read("find evictable objects", lambda tx: [stored_file(found) for found in tx.execute(query)], tier)

    def tier_objects(self, tier: str, *, after: str = "", limit: int = 1000) -> list[StoredFile]:
        """A page of the objects with a replica here, by id: what a scrub reads."""
        query = (
            select(*FILE_COLUMNS, objects.c.blocks)
            .select_from(replicas)
            .join(objects, objects.c.object_id == replicas.c.object_id)
            .where(replicas.c.tier == tier, replicas.c.place == self._place(self._tier(tier)), replicas.c.object_id > after)
            .where(wanted())
            .order_by(replicas.c.object_id)
            .limit(limit)
        )
        return self._db.read("list objects of tier", lambda tx: [stored_file(found) for found in tx.execute(query)], tier)

    def request_drain(self, object_id: str, tier: str) -> None:
        """Queue a copy of the object into the tier, at once: a repair or a recall. NotFound if the object is not live."""
        row = self._tier(tier)

        def work(tx: Connection) -> None:
            found = _locked(tx, object_id)
            if found is None or not found.is_wanted:
                raise NotFound("no such object is live", operation="request drain", subject=object_id, tier=tier)
            queue_drain(tx, found.owner, tier, self._place(row), self.node)

        self._db.write("request drain", work, object_id)

    # --- what follows ----------------------------------------------------------------------------------------------------------

    def _note_if_whole(self, tx: Connection, user: Row[*tuple[Any, ...]], tier: TierRow, place: str) -> None:
        """The last drain of what this publication needs in this place arrived: its record is owed, unless it is kept from there."""
        kept_from = (unkept.c.publication_id == user.publication_id, unkept.c.tier == tier.name)
        if tx.execute(select(unkept.c.tier).where(*kept_from)).first() is not None:
            return
        waiting = (drains.c.publication_id == user.publication_id, drains.c.tier == tier.name, drains.c.place == place)
        if tx.execute(select(drains.c.object_id).where(*waiting).limit(1)).first() is not None:
            return
        lacking = objects_lacking(user.publication_id, tier, place)
        if tx.execute(lacking.limit(1)).first() is not None:
            return
        row = {"publication_id": user.publication_id, "tier": tier.name, "place": place, "owner": self.node, "opened": user.opened}
        tx.execute(insert_unless_there(tx, owed_records).values(**row))

    def _has_other(self, tx: Connection, object_id: str, tier: TierRow, place: str, *, anywhere: bool) -> bool:
        durable = [row.name for row in self._tiers.values() if row.durable]
        elsewhere = or_(replicas.c.tier != tier.name, replicas.c.place != place)
        good = (
            and_(replicas.c.tier.in_(durable), replicas.c.place.in_(("", self.node)), elsewhere)
            if anywhere
            else self._deeper(replicas.c, tier)
        )
        if not anywhere:
            good = and_(good, ~_uncovered_user(replicas.c))
        query = select(replicas.c.object_id).where(replicas.c.object_id == object_id, ~replicas.c.damaged, good)
        return tx.execute(query.limit(1)).first() is not None

    def _deeper(self, columns: Any, tier: TierRow) -> Any:
        """Condition on a replica's columns: it is in a durable tier deeper than `tier`, shared or of this node."""
        deeper = [row for row in self._tiers.values() if row.durable and row.position > tier.position]
        if not deeper:
            return false()
        return or_(*(and_(columns.tier == row.name, columns.place == self._place(row)) for row in deeper))


def objects_lacking(publication_id: str, tier: TierRow, place: str) -> Any:
    """Those objects that a publication needs which belong in a place and have no good replica there."""
    there = exists().where(
        replicas.c.object_id == objects.c.object_id, replicas.c.tier == tier.name, replicas.c.place == place, ~replicas.c.damaged
    )
    query = select(objects.c.object_id).select_from(needed_objects(publication_id)).where(~there)
    return query if tier.shared else query.where(objects.c.node == place)


def is_wanted_in(tx: Connection, object_id: str, tier: str) -> bool:
    return tx.execute(select(objects.c.object_id).where(objects.c.object_id == object_id, wanted(tier))).first() is not None


def _has_record(publication_id: Any, replica: Any) -> ColumnElement[bool]:
    """Condition: the publication's commit record lies where the replica does."""
    record = tier_commits.alias("record")
    here = (record.c.publication_id == publication_id, record.c.tier == replica.tier, record.c.place == replica.place)
    return exists(select(record.c.publication_id).where(*here).correlate_except(record))


def _uncovered_user(replica: Any) -> ColumnElement[bool]:
    """Condition: somebody refers to the replica's object who has no record there, or none at all yet."""
    user = publications.alias("referring")
    query = (
        select(references.c.object_id)
        .select_from(references.outerjoin(user, user.c.publication_id == references.c.attempt_id))
        .where(references.c.object_id == replica.object_id)
        .where(or_(user.c.publication_id.is_(None), and_(user.c.state.in_(KNOWN), ~_has_record(user.c.publication_id, replica))))
    )
    return exists(query.correlate_except(references, user))


def queue_drain(tx: Connection, owner: Row[*tuple[Any, ...]], tier: str, place: str, node: str) -> None:
    row = {
        "object_id": owner.object_id, "tier": tier, "place": place, "owner": node, "publication_id": owner.publication_id,
        "opened": owner.opened, "sequence": owner.sequence, "size_bytes": owner.size_bytes, "queued_at_s": now_s(), "due_s": now_s(),
        "tries": 0, "error": None,
    }  # fmt: skip
    upsert(tx, drains, row, ("due_s",))


def _locked(tx: Connection, object_id: str) -> _Needed | None:
    """Who needs an object, their rows held; None if it was never published."""
    query = (
        select(
            publications.c.publication_id, publications.c.state, publications.c.opened, publications.c.sequence,
            objects.c.object_id, objects.c.node, objects.c.size_bytes,
        )
        .join(objects, objects.c.attempt_id == publications.c.publication_id)
        .where(objects.c.object_id == object_id)
        .with_for_update(of=publications)
    )  # fmt: skip
    owner = tx.execute(query).first()
    if owner is None:
        return None
    referring = select(references.c.attempt_id).where(references.c.object_id == object_id)
    ids = set(tx.execute(referring).scalars())
    if not ids:
        return _Needed(owner, [owner] if owner.state in KNOWN else [], pinned=False)
    held = select(publications.c.publication_id, publications.c.state, publications.c.opened)
    held = held.where(publications.c.publication_id.in_(referring)).order_by(publications.c.publication_id).with_for_update()
    published = tx.execute(held).all()
    users = [row for row in (owner, *published) if row.state in KNOWN]
    return _Needed(owner, users, pinned=bool(ids - {row.publication_id for row in published}))


def _records_are_void(tx: Connection, users: Sequence[Row[*tuple[Any, ...]]], tier: str, place: str) -> None:
    ids = [user.publication_id for user in users]
    for table in (tier_commits, owed_records):
        tx.execute(delete(table).where(table.c.publication_id.in_(ids), table.c.tier == tier, table.c.place == place))


def _queue_deletion(tx: Connection, publication_id: str, object_id: str, tier: str, place: str, owner: str) -> None:
    there = select(chores.c.chore_id).where(chores.c.object_id == object_id, chores.c.tier == tier, chores.c.place == place)
    if tx.execute(there).first() is None:
        tx.execute(
            insert(chores).values(
                publication_id=publication_id, act=Act.DELETE_OBJECT.value, tier=tier, place=place, owner=owner, object_id=object_id,
                graced=False, due_s=now_s(), tries=0, error=null(),
            )
        )  # fmt: skip
