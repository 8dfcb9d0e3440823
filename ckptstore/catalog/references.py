"""Which objects does a publication need, and may an object go? References from one checkpoint to the objects of earlier ones.

An incremental checkpoint refers to the objects that hold its unchanged tensors. A reference always names the object that holds the
bytes, never one that refers on. An object is *wanted* as long as its own publication is live or superseded, or somebody who refers to
it is: such a publication, or an attempt that has not ended, whose references are its pins. What is wanted is drained, kept and repaired
also when its own publication was deleted; that one's row then stays, in the state `remains`, until nobody refers to it any more.

A reference is made only to what is wanted, in a transaction that holds the row of the object's own publication. Whoever takes a user
away holds that row, too: so an object cannot gain a user while the last one goes, and of two that go at once one sees the other gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    FromClause,
    Join,
    Row,
    exists,
    func,
    insert,
    or_,
    select,
    union,
    union_all,
    update,
)

from ckptstore import paths
from ckptstore.catalog.core import Core, chunks
from ckptstore.catalog.entries import published_below
from ckptstore.catalog.model import AttemptState, Kind, Reference, StoredFile
from ckptstore.catalog.schema import attempts, now_s, objects, publications, references, replicas, unkept
from ckptstore.catalog.views import file_columns, stored_file
from ckptstore.errors import AttemptAborted

#: The states in which a publication can be read.
KNOWN = ("live", "superseded")
#: The states in which only its objects may still be wanted, by others.
ENDED = ("deleted", "remains")


def needed(publication_ids: Iterable[str]) -> ColumnElement[bool]:
    """Condition on `objects`: one of these publications, or attempts, owns it or refers to it."""
    return objects.c.object_id.in_(needed_ids(list(publication_ids)))


def needed_objects(publication_id: str) -> Join:
    """The objects that a publication, or an attempt, owns or refers to, to select from.

    Joined to the ids, not filtered by them as `needed` does: of IN with a subquery SQLite guesses the number of ids, and where its
    statistics are those of a young store it reads all objects rather than looking so many up, also when they have become a million.
    """
    ids = needed_ids([publication_id]).subquery()
    return ids.join(objects, objects.c.object_id == ids.c.object_id)


def needed_ids(ids: list[str]) -> CompoundSelect[Any]:
    own = objects.alias("own")
    return union(
        select(own.c.object_id).where(own.c.attempt_id.in_(ids)),
        select(references.c.object_id).where(references.c.attempt_id.in_(ids)),
    )


def wanted(tier: str | None = None) -> ColumnElement[bool]:
    """Condition on `objects` that were published: somebody can still be read who needs it, or an attempt pins it.

    With `tier`, in that tier: then those do not count that are kept from it.
    """
    owner, user = publications.alias("owner"), publications.alias("user_of")
    owned = select(owner.c.publication_id).where(owner.c.publication_id == objects.c.attempt_id, _counts(owner, tier))
    referred = (
        select(references.c.object_id)
        .select_from(references.outerjoin(user, user.c.publication_id == references.c.attempt_id))
        .where(references.c.object_id == objects.c.object_id, or_(user.c.publication_id.is_(None), _counts(user, tier)))
    )
    return or_(exists(owned.correlate(objects)), exists(referred.correlate(objects)))


def _counts(publication: FromClause, tier: str | None) -> ColumnElement[bool]:
    known: ColumnElement[bool] = publication.c.state.in_(KNOWN)
    if tier is None:
        return known
    kept_from = (unkept.c.publication_id == publication.c.publication_id, unkept.c.tier == tier)
    return known & ~exists(select(unkept.c.tier).where(*kept_from).correlate(publication))


def users(object_id: ColumnElement[str]) -> CompoundSelect[Any]:
    """The ids of all that own an object or refer to it, in whatever state; `object_id` is a column of `objects`, outside."""
    owned = objects.alias("owned")
    return union_all(
        select(owned.c.attempt_id).where(owned.c.object_id == object_id).correlate(objects),
        select(references.c.attempt_id).where(references.c.object_id == object_id).correlate(objects),
    )


def lock_owners(tx: Connection, user_ids: Iterable[str]) -> list[Row[*tuple[Any, ...]]]:
    """Hold the publications whose objects these users refer to; they are given in the order of their ids."""
    owners: list[Row[*tuple[Any, ...]]] = []
    for ids in chunks(user_ids):
        theirs = (
            select(objects.c.attempt_id)
            .join(references, references.c.object_id == objects.c.object_id)
            .where(references.c.attempt_id.in_(ids))
        )
        query = select(publications.c.publication_id, publications.c.state).where(publications.c.publication_id.in_(theirs))
        owners += tx.execute(query.order_by(publications.c.publication_id).with_for_update()).all()
    return owners


class References(Core):
    def bases(self, path: str, rank: int, *, limit: int) -> list[StoredFile]:
        """What a save at `path` may refer to: this rank's file of the newest checkpoints in its folder, newest first.

        Only what this node ingested: then a reference never makes a checkpoint depend on another node's own tiers.
        """
        parent, _ = paths.parent_and_name(path)
        newest = (
            select(publications.c.publication_id, publications.c.opened)
            .where(publications.c.parent == parent, publications.c.state == "live", publications.c.kind == Kind.CHECKPOINT)
            .order_by(publications.c.opened.desc())
            .limit(limit)
            .subquery()
        )
        query = (
            select(*file_columns(True))
            .join(newest, newest.c.publication_id == objects.c.attempt_id)
            .where(objects.c.rank == rank, objects.c.name.not_in((paths.INDEX_NAME, paths.SHARDS_NAME)), objects.c.node == self.node)
            .order_by(newest.c.opened.desc())
        )
        return [stored_file(row) for row in self._db.read("find base", lambda tx: tx.execute(query).all(), path)]

    def refer(self, attempt_id: str, rank: int, used_bytes: Mapping[str, int], *, tier: str) -> set[str]:
        """Pin objects that a rank's tensors lie in; the ids of those that are pinned, which may be fewer.

        Refused is what nobody wants any more, and what is not whole in `tier`, where the checkpoint is first written to: it would be
        durable there only after a recall. AttemptAborted if the attempt has ended.
        """
        place = self._place(self._tier(tier))

        def work(tx: Connection) -> set[str]:
            moved = update(attempts).where(attempts.c.attempt_id == attempt_id, attempts.c.state == AttemptState.OPEN)
            if tx.execute(moved.values(moved_at_s=now_s())).rowcount == 0:
                raise AttemptAborted("the attempt has ended", operation="refer", subject=attempt_id)
            pinned: set[str] = set()
            for ids in chunks(used_bytes):
                pinned.update(self._usable(tx, ids, tier, place))
            if pinned:
                known = set(tx.execute(select(references.c.object_id).where(references.c.attempt_id == attempt_id)).scalars())
                rows = [
                    {"attempt_id": attempt_id, "object_id": item, "rank": rank, "size_bytes": used_bytes[item]}
                    for item in sorted(pinned - known)
                ]
                if rows:
                    tx.execute(insert(references), rows)
                here = (replicas.c.object_id.in_(pinned), replicas.c.tier == tier, replicas.c.place == place)
                tx.execute(update(replicas).where(*here).values(used_at_s=now_s()))  # what every save needs is evicted last
            return pinned

        return self._db.write("refer", work, attempt_id)

    def references(
        self, user_id: str, *, place: str | None = None, after: str = "", limit: int = 1000, with_blocks: bool = False
    ) -> list[Reference]:
        """A page of what a publication, or an attempt, refers to, by id; with `place`, only what that node ingested."""
        query = (
            select(
                *file_columns(with_blocks),
                objects.c.attempt_id.label("owner_id"),
                publications.c.path,
                references.c.rank.label("user_rank"),
                references.c.size_bytes.label("used_bytes"),
            )
            .select_from(references)
            .join(objects, objects.c.object_id == references.c.object_id)
            .join(publications, publications.c.publication_id == objects.c.attempt_id)
            .where(references.c.attempt_id == user_id, references.c.object_id > after)
            .order_by(references.c.object_id)
            .limit(limit)
        )
        if place:
            query = query.where(objects.c.node == place)
        rows = self._db.read("list references", lambda tx: tx.execute(query).all(), user_id)
        return [Reference(stored_file(row), row.owner_id, row.path, row.user_rank, row.used_bytes) for row in rows]

    def shared_usage(self, path: str) -> tuple[int, int]:
        """At and below `path`: bytes that checkpoints use of earlier ones' objects, and bytes of removed ones kept for that."""
        path = paths.check_folder(path, operation="measure")
        used = select(func.coalesce(func.sum(publications.c.referred_bytes), 0)).where(published_below(path, "live"))
        kept = (
            select(func.coalesce(func.sum(objects.c.size_bytes), 0))
            .join(publications, publications.c.publication_id == objects.c.attempt_id)
            .where(published_below(path, *ENDED), wanted())
        )
        row = self._db.read("measure", lambda tx: tx.execute(select(used.scalar_subquery(), kept.scalar_subquery())).one(), path)
        return int(row[0]), int(row[1])

    def _usable(self, tx: Connection, ids: list[str], tier: str, place: str) -> list[str]:
        owners = select(objects.c.attempt_id).where(objects.c.object_id.in_(ids))
        held = select(publications.c.publication_id).where(publications.c.publication_id.in_(owners))
        tx.execute(held.order_by(publications.c.publication_id).with_for_update()).all()
        whole = exists().where(
            replicas.c.object_id == objects.c.object_id, replicas.c.tier == tier, replicas.c.place == place, ~replicas.c.damaged
        )
        query = select(objects.c.object_id).where(objects.c.object_id.in_(ids), objects.c.root.is_not(None), wanted(), whole)
        return list(tx.execute(query).scalars())
