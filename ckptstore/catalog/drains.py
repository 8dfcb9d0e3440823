"""What has to move into which tier, and which commit records are owed there?

The drain queue is a table: it survives the daemon. A drain is work of the node that ingested the object (it has the nearest copy); in a
shared tier another node takes over when that one has not been heard of for long. Order is that of the attempts' opening. A commit
record is owed in a place from the transaction in which the last object arrived there; once it is written, the tier counts as holding
the publication, and a version that it replaced may go if nothing is lost by it.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, delete, exists, func, select, update

from ckptstore import paths, records
from ckptstore.catalog.core import upsert
from ckptstore.catalog.deletion import delete_publications
from ckptstore.catalog.model import (
    AttemptState,
    Backlog,
    Drain,
    Publication,
    Reference,
    StoredFile,
    TierRow,
    Waiting,
    record_key,
    tombstone_key,
)
from ckptstore.catalog.references import References, needed_ids
from ckptstore.catalog.replicas import objects_lacking
from ckptstore.catalog.schema import attempts, chores, drains, now_s, objects, owed_records, publications, replicas, tier_commits, unkept
from ckptstore.catalog.views import deepest, durabilities, file_columns, publication_row, read_publication, stored_file
from ckptstore.errors import InvalidInput, NotFound

_PAGE = 1000


class Drains(References):
    def pending_drains(self, tier: str, *, limit: int) -> list[Drain]:
        """This node's drains into the tier that are due, those of the attempts opened first before others."""
        row = self._tier(tier)

        def work(tx: Connection) -> list[Drain]:
            mine, *gone = self._owners(tx, row)
            found = self._due_drains(tx, row, [mine], limit, adopted=False)
            if gone and len(found) < limit:
                found += self._due_drains(tx, row, gone, limit - len(found), adopted=True)
            return found

        return self._db.read("list drains", work, tier)

    def is_queued(self, object_id: str, tier: str) -> bool:
        """Whether a copy of the object into the tier waits, or is being made, for this node."""
        place = self._place(self._tier(tier))
        here = (drains.c.object_id == object_id, drains.c.tier == tier, drains.c.place == place)
        query = select(drains.c.object_id).where(*here).limit(1)
        return self._db.read("look for drain", lambda tx: tx.execute(query).first() is not None, object_id)

    def drain_first(self, publication_id: str) -> Publication:
        """What of it, and of what it refers to, waits to be drained goes before all else, into every tier and on every node."""

        def work(tx: Connection) -> Publication:
            found = publication_row(tx, publication_id)
            if found is None:
                raise NotFound("no such publication is known", operation="drain first", subject=publication_id)
            waiting = update(drains).where(drains.c.object_id.in_(needed_ids([publication_id])))
            tx.execute(waiting.values(opened=0, due_s=now_s()))
            return read_publication(tx, found, self._tiers)

        return self._db.write("drain first", work, publication_id)

    def drain_failed(self, object_id: str, tier: str, error: str, retry_in_s: float) -> None:
        """Try the drain again later."""
        failed = update(drains).where(
            drains.c.object_id == object_id, drains.c.tier == tier, drains.c.place == self._place(self._tier(tier))
        )
        later = failed.values(tries=drains.c.tries + 1, error=error[:2000], due_s=now_s() + retry_in_s)
        self._db.write("put back drain", lambda tx: tx.execute(later), object_id)

    def backlog(self) -> list[Backlog]:
        """What waits to be drained by this node, for each durable tier in order; tiers with nothing waiting too."""

        def work(tx: Connection) -> list[Backlog]:
            return [self._backlog(tx, row.name) for row in self._tiers.values() if row.durable]

        return self._db.read("sum up drains", work)

    def waiting(self, tier: str, *, limit: int) -> list[Waiting]:
        """What of each publication waits to be drained into the tier by this node, in the order in which it will be."""
        summed = (
            select(now_s() - func.min(drains.c.queued_at_s), func.sum(drains.c.size_bytes))
            .where(drains.c.tier == tier, drains.c.owner == self.node)
            .group_by(drains.c.opened, drains.c.publication_id)
            .order_by(drains.c.opened)
            .limit(limit)
        )
        rows = self._db.read("sum up drains", lambda tx: tx.execute(summed).all(), tier)
        return [Waiting(max(0.0, float(age_s)), int(size_bytes)) for age_s, size_bytes in rows]

    def unfinished_names(self, tier: str) -> list[str]:
        """What `Tier.sweep` may find of this node's in the tier before anything moves: object ids, and the last names of documents.

        Each copy is in the queue before its first byte is written, each index and record is known to be owed; so a daemon that
        starts finds here whatever the one before it may have left half written. Aborted attempts are swept by their chores.
        """
        place = self._place(self._tier(tier))
        mine = (chores.c.tier == tier, chores.c.place == place, chores.c.owner == self.node, chores.c.object_id.is_(None))
        queries = (
            select(drains.c.object_id).where(drains.c.tier == tier, drains.c.place == place, drains.c.owner == self.node),
            select(objects.c.object_id)
            .join(attempts, attempts.c.attempt_id == objects.c.attempt_id)
            .where(attempts.c.state == AttemptState.COMPLETE, objects.c.root.is_(None)),
            select(owed_records.c.publication_id).where(owed_records.c.tier == tier, owed_records.c.owner == self.node),
            select(chores.c.publication_id).where(*mine),
        )

        def work(tx: Connection) -> list[str]:
            copies, indexes, owed, deleted = (list(tx.execute(query).scalars()) for query in queries)
            documents = [key(item) for item in (*owed, *deleted) for key in (record_key, tombstone_key)]
            return [*copies, *indexes, *(key.rpartition("/")[2] for key in documents)]

        return self._db.read("list unfinished work", work, tier)

    # --- commit records --------------------------------------------------------------------------------------------------------

    def owed_records(self, tier: str, *, limit: int) -> list[str]:
        """Publications that are whole in the tier and lack their record there, in the order of their opening."""
        row = self._tier(tier)

        def work(tx: Connection) -> list[str]:
            ids: list[str] = []
            for owner in self._owners(tx, row):
                owed = select(owed_records.c.publication_id).where(owed_records.c.tier == tier, owed_records.c.owner == owner)
                ids += tx.execute(owed.order_by(owed_records.c.opened).limit(limit - len(ids))).scalars()
                if len(ids) >= limit:
                    break
            return ids

        return self._db.read("list owed records", work, tier)

    def recorded_tiers(self, publication_id: str) -> list[str]:
        """The tiers that this node sees whose commit record of the publication is written and in force, in order."""
        same = (owed_records.c.publication_id, owed_records.c.tier, owed_records.c.place)
        newer = exists().where(*(column == tier_commits.c[column.name] for column in same))
        query = select(tier_commits.c.tier, tier_commits.c.place).where(tier_commits.c.publication_id == publication_id, ~newer)
        found = {(row.tier, row.place) for row in self._db.read("list records", lambda tx: tx.execute(query).all(), publication_id)}
        return [row.name for row in self._tiers.values() if row.durable and (row.name, self._place(row)) in found]

    def record(self, publication_id: str, *, tier: str) -> bytes:
        """The commit record to be written into the tier; in a node-local one, of this node's files.

        NotFound if the publication is not live or superseded; InvalidInput if it is not whole there.
        """
        row = self._tier(tier)
        place = self._place(row)
        store_id = self.store_id

        def head(tx: Connection) -> tuple[Publication, int, str]:
            found = publication_row(tx, publication_id)
            if found is None or found.state == "deleted":
                raise NotFound("no such publication is live", operation="make record", subject=publication_id, tier=tier)
            if tx.execute(objects_lacking(publication_id, row, place).limit(1)).first() is not None:
                raise InvalidInput("it is not whole in this tier", operation="make record", subject=found.path, tier=tier)
            listed = select(func.count()).where(objects.c.attempt_id == publication_id)
            count = tx.execute(listed if row.shared else listed.where(objects.c.node == place)).scalar_one()
            some = tx.execute(select(*file_columns(False)).where(objects.c.attempt_id == publication_id).limit(1)).one()
            return read_publication(tx, found, self._tiers), count, records.stored_as(stored_file(some))

        publication, count, stored_as = self._db.read("make record", head, publication_id)
        header = records.RecordHeader(
            store=store_id, publication_id=publication_id, path=publication.path, kind=publication.kind.value,
            sequence=publication.sequence, opened=publication.opened, world_size=publication.world_size, step=publication.step,
            metadata=publication.metadata, tier=tier, node=place, opened_at_s=publication.opened_at_s,
            published_at_s=publication.published_at_s, file_count=publication.file_count, complete=count == publication.file_count,
            version=3 if stored_as != publication.path else 2 if publication.referred_bytes else 1,
            stored_as=stored_as if stored_as != publication.path else "",
        )  # fmt: skip
        referred = self._references_in(publication_id, place)
        return b"".join(records.write_record(header, self._files_in(publication_id, row, place), referred))

    def record_written(self, publication_id: str, tier: str, *, sequence: int | None = None) -> Publication:
        """The record is durable in the tier. Deletes the versions that this one replaced, once it is as durable as they are.

        `sequence` is what the record says: if the publication was moved or tagged meanwhile, the record is still owed.
        """
        row = self._tier(tier)
        place = self._place(row)

        def work(tx: Connection) -> Publication:
            found = publication_row(tx, publication_id, locked=True)
            if found is None:
                raise NotFound("no such publication is known", operation="note record", subject=publication_id, tier=tier)
            here = (owed_records.c.publication_id == publication_id, owed_records.c.tier == tier, owed_records.c.place == place)
            if sequence not in (None, found.sequence):
                return read_publication(tx, found, self._tiers)
            owed = tx.execute(delete(owed_records).where(*here)).rowcount
            if owed and found.state != "deleted":
                key = {"publication_id": publication_id, "tier": tier, "place": place}
                upsert(tx, tier_commits, key | {"written_at_s": now_s()}, ("written_at_s",))
            if found.state == "live":
                free_superseded(tx, self.node, found.path, self._tiers)
            return read_publication(tx, found, self._tiers)

        return self._db.write("note record", work, publication_id)

    # --- reading ---------------------------------------------------------------------------------------------------------------

    def _due_drains(self, tx: Connection, tier: TierRow, owners: list[str], limit: int, *, adopted: bool) -> list[Drain]:
        """Of other nodes' drains only those that can be read from a shared tier."""
        query = (
            select(drains, objects.c.key)
            .join(objects, objects.c.object_id == drains.c.object_id)
            .where(drains.c.tier == tier.name, drains.c.owner.in_(owners), drains.c.due_s <= now_s())
            .order_by(drains.c.opened, drains.c.object_id)
            .limit(limit)
        )
        if adopted:
            shared = exists().where(replicas.c.object_id == drains.c.object_id, replicas.c.place == "", ~replicas.c.damaged)
            query = query.where(shared)
        return [
            Drain(
                row.object_id, row.publication_id, _path_of(row.key), row.key, row.tier, row.size_bytes, row.sequence, row.tries
            )
            for row in tx.execute(query)
        ]  # fmt: skip

    def _backlog(self, tx: Connection, tier: str) -> Backlog:
        mine = (drains.c.tier == tier, drains.c.owner == self.node)
        summed = select(
            func.count(), func.coalesce(func.sum(drains.c.size_bytes), 0), func.coalesce(now_s() - func.min(drains.c.queued_at_s), 0.0)
        )
        row = tx.execute(summed.where(*mine)).one()
        failed = select(drains.c.error).where(*mine, drains.c.tries > 0).order_by(drains.c.due_s.desc()).limit(1)
        error = tx.execute(failed).scalar_one_or_none() if row[0] else None
        return Backlog(tier, int(row[0]), int(row[1]), max(0.0, float(row[2])), error)

    def _references_in(self, publication_id: str, place: str) -> Iterator[Reference]:
        after = ""
        while page := self.references(publication_id, place=place, after=after, limit=_PAGE, with_blocks=True):
            yield from page
            after = page[-1].file.object_id

    def _files_in(self, publication_id: str, tier: TierRow, place: str) -> Iterator[StoredFile]:
        after: str | None = None
        while True:
            query = select(*file_columns(True)).where(objects.c.attempt_id == publication_id)
            if after is not None:
                query = query.where(objects.c.name > after)
            if not tier.shared:
                query = query.where(objects.c.node == place)
            ordered = query.order_by(objects.c.name).limit(_PAGE)
            page = self._db.read("make record", lambda tx, q=ordered: tx.execute(q).all(), publication_id)  # type: ignore[misc]
            yield from map(stored_file, page)
            if len(page) < _PAGE:
                return
            after = page[-1].name


def free_superseded(tx: Connection, me: str, path: str, tiers: dict[str, TierRow]) -> None:
    """Delete the replaced versions at a path whose deepest durable tier, of those it may come to, the live version has reached."""
    rows = tx.execute(
        select(publications.c.publication_id, publications.c.node_count, publications.c.state)
        .where(publications.c.path == path, publications.c.state.in_(("live", "superseded")))
        .with_for_update()
    ).all()
    live = next((row.publication_id for row in rows if row.state == "live"), None)
    if live is None or len(rows) == 1:
        return
    durable = durabilities(tx, {row.publication_id: row.node_count for row in rows}, tiers)
    reached = deepest(durable[live], tiers)
    never = set(tx.execute(select(unkept.c.tier).where(unkept.c.publication_id == live)).scalars())
    old = [row.publication_id for row in rows if row.state == "superseded"]
    delete_publications(tx, me, [item for item in old if reached >= max(0, deepest({*durable[item]} - never, tiers))])


def _path_of(key: str) -> str:
    """`objects/a/b~id` → `/a/b`."""
    return key[len(paths.object_key("", "")) - 1 :].rpartition("~")[0]
