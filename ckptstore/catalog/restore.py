"""How is the catalog made anew from what the tiers say?

A rebuild is one `begin_restore`, then a call for each tombstone, then one for each publication found, then `end_restore`. Each call is
a transaction. Until the last, the catalog is marked: it is not empty, no daemon may use it, and only another `begin_restore`, which
starts over, is allowed. So a rebuild that is interrupted anywhere is simply run again.

What wins: a tombstone over its record; at one path the highest sequence (the others are older versions, kept until the new one is as
durable); of two publications of which one lies inside the other, the one published later, since the other must have been removed
before. Counters go on above all that was seen.

An object that others refer to comes back with them, whether its own publication does or not: that one then has a row in the state
`remains`, which its own record, if it is found later, replaces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, delete, exists, insert, literal, select, update

from ckptstore import paths
from ckptstore.catalog.core import Core, chunks, clock, fact, insert_unless_there, is_empty, lock_namespace, set_fact
from ckptstore.catalog.deletion import delete_publications, queue_tombstones_everywhere
from ckptstore.catalog.drains import free_superseded
from ckptstore.catalog.entries import add_entry, below, refuse_taken_path, remove_entries
from ckptstore.catalog.model import Attachment, Reference, StoredFile, TierRow
from ckptstore.catalog.publish import queue_drains
from ckptstore.catalog.replicas import objects_lacking
from ckptstore.catalog.schema import (
    attachments,
    chores,
    counters,
    entries,
    inner_folders,
    metadata,
    nodes,
    now_s,
    objects,
    owed_records,
    publications,
    references,
    replicas,
    store,
    tier_commits,
    tiers,
    tombstones,
)
from ckptstore.errors import InvalidInput, WrongStore
from ckptstore.records import RecordHeader, Tombstone

_REMAINS = "remains"


@dataclass(frozen=True)
class RestoredFile:
    """A file that a commit record lists, and the tiers of this node in which its object was found whole.

    With each tier, what the object takes there if it is compressed, or None.
    """

    file: StoredFile
    tiers: Mapping[str, int | None]


@dataclass(frozen=True)
class RestoredReference:
    """An object that a commit record refers to, and the tiers of this node in which it was found whole."""

    reference: Reference
    tiers: Mapping[str, int | None]


class Outcome(StrEnum):
    """What became of a publication whose record was found."""

    LIVE = "live"
    SUPERSEDED = "superseded"
    DELETED = "deleted"


class Restore(Core):
    def begin_restore(self, store_id: str, rows: Sequence[TierRow]) -> None:
        """Become the catalog of that store, with nothing in it yet. WrongStore unless the catalog is empty or a rebuild was cut off."""

        def work(tx: Connection) -> None:
            if not is_empty(tx) and fact(tx, "rebuilding") is None:
                raise WrongStore("the catalog is not empty", operation="rebuild", hint="move its database away first")
            for table in metadata.sorted_tables:
                if table not in (store, counters, nodes):
                    tx.execute(delete(table))
            tx.execute(update(counters).values(value=0))
            set_fact(tx, "store_id", store_id)
            set_fact(tx, "rebuilding", "yes")
            self._record_tiers(tx, rows)

        self._db.write("begin rebuild", work, store_id)
        self._store_id = store_id
        self._tiers = {row.name: row for row in sorted(rows, key=lambda row: row.position)}

    def restore_tombstone(self, tombstone: Tombstone, *, tier: str) -> None:
        """That publication is deleted, whatever records are found."""
        place = self._place(self._tier(tier))
        row = {
            "publication_id": tombstone.publication_id, "path": tombstone.path, "parent": paths.parent_and_name(tombstone.path)[0],
            "kind": "folder", "state": "deleted", "sequence": tombstone.sequence, "opened": 0, "world_size": 1, "metadata": "{}",
            "size_bytes": 0, "file_count": 0, "node_count": 0, "opened_at_s": 0.0, "published_at_s": 0.0,
            "ended_at_s": tombstone.deleted_at_s,
        }  # fmt: skip

        def work(tx: Connection) -> None:
            _raise_counter(tx, "sequence", tombstone.sequence)
            tx.execute(insert_unless_there(tx, publications).values(**row))
            lies = {"publication_id": tombstone.publication_id, "tier": tier, "place": place}
            tx.execute(insert_unless_there(tx, tombstones).values(**lies))

        self._db.write("restore tombstone", work, tombstone.path)

    def is_restored(self, publication_id: str) -> Outcome | None:
        """What is already known of it in this rebuild."""
        query = select(publications.c.state).where(publications.c.publication_id == publication_id)
        state = self._db.read("look up publication", lambda tx: tx.execute(query).scalar_one_or_none(), publication_id)
        return Outcome(state) if state not in (None, _REMAINS) else None

    def is_live(self, publication_id: str) -> bool | None:
        """Whether a publication is live or an older version that is still kept; False if it was deleted, None if it is unknown."""
        query = select(publications.c.state).where(publications.c.publication_id == publication_id)
        state = self._db.read("look up publication", lambda tx: tx.execute(query).scalar_one_or_none(), publication_id)
        return None if state in (None, _REMAINS) else state in ("live", "superseded")

    def rebuilt(self) -> tuple[int, str]:
        """The number of the rebuild that made this catalog, and the node that did it; (0, "") if it was never rebuilt."""

        def work(tx: Connection) -> tuple[int, str]:
            return int(fact(tx, "generation") or 0), fact(tx, "rebuilt_by") or ""

        return self._db.read("look up rebuild", work)

    def note_seen(self, header: RecordHeader) -> None:
        """Let the counters go on above a publication that is not restored."""

        def work(tx: Connection) -> None:
            _raise_counter(tx, "sequence", header.sequence)
            _raise_counter(tx, "opened", header.opened)

        self._db.write("note record", work, header.path)

    def restore_attachment(self, attachment: Attachment, sequence: int) -> None:
        """Show it again, after all publications. AlreadyExists, PathConflict, InvalidInput where it cannot be."""
        path = paths.check_path(attachment.path, operation="attach")

        def work(tx: Connection) -> None:
            lock_namespace(tx)
            _raise_counter(tx, "sequence", sequence)
            add_entry(tx, path, None, refuse_taken_path(tx, path, False, "attach"))
            tx.execute(insert(attachments).values(**asdict(attachment)))

        self._db.write("restore attachment", work, path)

    def restore_publication(
        self,
        header: RecordHeader,
        files: Sequence[RestoredFile],
        references: Sequence[RestoredReference] = (),
        *,
        recorded: Iterable[str],
    ) -> Outcome:
        """Take up a publication all of whose files were found, or the files of a deleted one, so that they get deleted.

        `recorded` are the tiers of this node that hold its commit record.
        """
        recorded = tuple(recorded)

        def work(tx: Connection) -> Outcome:
            lock_namespace(tx)
            _raise_counter(tx, "sequence", header.sequence)
            _raise_counter(tx, "opened", header.opened)
            self._insert_objects(tx, header, files)
            self._insert_references(tx, header, references)
            mine = publications.c.publication_id == header.publication_id
            tx.execute(delete(publications).where(mine, publications.c.state == _REMAINS))
            state = tx.execute(select(publications.c.state).where(mine)).scalar()
            if state is not None:
                return Outcome(state)
            tx.execute(insert(publications).values(**_row(header, files, references)))
            outcome = self._settle_path(tx, header)
            self._queue_what_lacks(tx, header, recorded)
            if outcome is Outcome.DELETED:
                delete_publications(tx, self.node, [header.publication_id])
            free_superseded(tx, self.node, header.path, self._tiers)
            return outcome

        return self._db.write("restore publication", work, header.path)

    def end_restore(self, generation: int = 1) -> None:
        """Queue the steps that deletions still owe, and open the catalog for use. `generation`: which rebuild of the store this was."""

        def work(tx: Connection) -> None:
            if fact(tx, "rebuilding") is None:
                raise InvalidInput("no rebuild was begun", operation="end rebuild")
            lock_namespace(tx)
            queue_tombstones_everywhere(tx, self.node)
            set_fact(tx, "rebuilding", None)
            set_fact(tx, "generation", str(generation))
            set_fact(tx, "rebuilt_by", self.node)

        self._db.write("end rebuild", work)

    def known_objects(self, object_ids: Iterable[str]) -> set[str]:
        """Those of the ids that the catalog knows, of whatever state."""

        def work(tx: Connection) -> set[str]:
            found: set[str] = set()
            for ids in chunks(object_ids):
                found.update(tx.execute(select(objects.c.object_id).where(objects.c.object_id.in_(ids))).scalars())
            return found

        object_ids = list(object_ids)
        return self._db.read("look up objects", work)

    # --- one publication -------------------------------------------------------------------------------------------------------

    def _insert_objects(self, tx: Connection, header: RecordHeader, files: Sequence[RestoredFile]) -> None:
        known = set(tx.execute(select(objects.c.object_id).where(objects.c.attempt_id == header.publication_id)).scalars())
        fresh = [found for found in files if found.file.object_id not in known]
        for page in chunks(fresh):
            tx.execute(insert(objects), [_object_row(header.publication_id, found.file) for found in page])
        self._insert_replicas(tx, header, [(found.file, found.tiers) for found in files])
        names = {folder[1:] for found in fresh for folder in paths.ancestors("/" + found.file.name)}
        folders = [{"attempt_id": header.publication_id, "folder": n.rpartition("/")[0], "leaf": n.rpartition("/")[2]} for n in names]
        for page_of_folders in chunks(folders):
            tx.execute(insert_unless_there(tx, inner_folders), page_of_folders)
        for node in {found.file.node for found in files} - {self.node}:
            # Not heard of yet: until it is, others may drain in its stead what lies in a shared tier.
            tx.execute(insert_unless_there(tx, nodes).values(node=node, name="", seen_s=0.0))

    def _insert_replicas(self, tx: Connection, header: RecordHeader, found: Iterable[tuple[StoredFile, Mapping[str, int | None]]]) -> None:
        times = {"verified_at_s": clock(tx), "used_at_s": header.published_at_s, "damaged": False}
        lying: list[dict[str, Any]] = [
            {"object_id": file.object_id, "tier": tier, "place": self._place(self._tier(tier)), "stored_bytes": stored_bytes} | times
            for file, tiers_with_it in found
            for tier, stored_bytes in tiers_with_it.items()
        ]
        for rows in chunks(lying):
            tx.execute(insert_unless_there(tx, replicas), rows)

    def _insert_references(self, tx: Connection, header: RecordHeader, found: Sequence[RestoredReference]) -> None:
        for page in chunks(found):
            referred = [item.reference for item in page]
            owners = {reference.publication_id: _remains(reference) for reference in referred}
            tx.execute(insert_unless_there(tx, publications), list(owners.values()))
            tx.execute(insert_unless_there(tx, objects), [_object_row(item.publication_id, item.file) for item in referred])
            rows = [
                {"attempt_id": header.publication_id, "object_id": r.file.object_id, "rank": r.rank, "size_bytes": r.size_bytes}
                for r in referred
            ]
            tx.execute(insert_unless_there(tx, references), rows)
            # What its own publication's end has queued before this record was read.
            tx.execute(delete(chores).where(chores.c.object_id.in_([reference.file.object_id for reference in referred])))
        self._insert_replicas(tx, header, [(item.reference.file, item.tiers) for item in found])

    def _settle_path(self, tx: Connection, header: RecordHeader) -> Outcome:
        """Live, or an older version, or something that must have been removed before what is there now was published."""
        path = header.path
        low, high = below(path)
        around = entries.c.path.in_(paths.ancestors(path)) | ((entries.c.path >= low) & (entries.c.path < high))
        crossing = tx.execute(
            select(publications.c.publication_id, publications.c.path, publications.c.sequence)
            .join(entries, entries.c.publication_id == publications.c.publication_id)
            .where(around)
        ).all()
        if any(row.sequence > header.sequence for row in crossing):
            return Outcome.DELETED
        delete_publications(tx, self.node, [row.publication_id for row in crossing])
        remove_entries(tx, [row.path for row in crossing])
        same = tx.execute(
            select(publications.c.publication_id, publications.c.sequence).where(
                publications.c.path == path, publications.c.state == "live", publications.c.publication_id != header.publication_id
            )
        ).first()
        newer = same is not None and same.sequence > header.sequence
        loser = header.publication_id if newer else same.publication_id if same is not None else None
        if loser is not None:
            tx.execute(update(publications).where(publications.c.publication_id == loser).values(state="superseded", ended_at_s=now_s()))
        if not newer:
            there = tx.execute(select(entries.c.path, entries.c.publication_id).where(entries.c.path.in_([*paths.ancestors(path), path])))
            add_entry(tx, path, header.publication_id, {row.path: row.publication_id for row in there})
        return Outcome.SUPERSEDED if newer else Outcome.LIVE

    def _queue_what_lacks(self, tx: Connection, header: RecordHeader, recorded: Sequence[str]) -> None:
        """Drains into deeper tiers, and for each tier that lacks nothing its record: written, or owed."""
        shallower = replicas.alias("shallower"), tiers.alias("shallower_tier")
        queue_drains(
            tx, self.node, header.publication_id, header.opened, header.sequence,
            only=exists(
                select(shallower[0].c.object_id)
                .select_from(shallower[0])
                .join(shallower[1], (shallower[1].c.node == self.node) & (shallower[1].c.name == shallower[0].c.tier))
                .where(shallower[0].c.object_id == objects.c.object_id, shallower[1].c.position < tiers.c.position)
            ),
        )  # fmt: skip
        for tier in (row for row in self._tiers.values() if row.durable):
            place = self._place(tier)
            mine = select(objects.c.object_id).where(objects.c.attempt_id == header.publication_id)
            concerned = mine if tier.shared else mine.where(objects.c.node == place)
            if tx.execute(concerned.limit(1)).first() is None:
                continue
            if tx.execute(objects_lacking(header.publication_id, tier, place).limit(1)).first() is not None:
                continue
            key = {"publication_id": header.publication_id, "tier": tier.name, "place": place}
            if tier.name in recorded:
                tx.execute(insert(tier_commits).values(**key, written_at_s=now_s()))
            else:
                tx.execute(insert(owed_records).values(**key, owner=self.node, opened=header.opened))


def _row(header: RecordHeader, files: Sequence[RestoredFile], references: Sequence[RestoredReference]) -> dict[str, Any]:
    return {
        "publication_id": header.publication_id, "path": header.path, "parent": paths.parent_and_name(header.path)[0],
        "kind": header.kind, "state": "live", "sequence": header.sequence, "opened": header.opened, "world_size": header.world_size,
        "step": header.step, "metadata": header.metadata, "size_bytes": sum(found.file.size_bytes for found in files),
        "file_count": len(files), "node_count": len({found.file.node for found in files}), "opened_at_s": header.opened_at_s,
        "published_at_s": header.published_at_s, "referred_bytes": sum(found.reference.size_bytes for found in references),
    }  # fmt: skip


def _remains(reference: Reference) -> dict[str, Any]:
    """The publication of an object, of which nothing else is known."""
    return {
        "publication_id": reference.publication_id, "path": reference.path, "parent": paths.parent_and_name(reference.path)[0],
        "kind": "checkpoint", "state": _REMAINS, "sequence": 0, "opened": 0, "world_size": 1, "metadata": "{}", "size_bytes": 0,
        "file_count": 0, "node_count": 0, "opened_at_s": 0.0, "published_at_s": 0.0, "ended_at_s": 0.0,
    }  # fmt: skip


def _object_row(publication_id: str, file: StoredFile) -> dict[str, Any]:
    folder, _, leaf = file.name.rpartition("/")
    return {
        "object_id": file.object_id, "attempt_id": publication_id, "rank": file.rank, "name": file.name, "folder": folder, "leaf": leaf,
        "key": file.key, "node": file.node, "size_bytes": file.size_bytes, "root": file.root, "blocks": file.blocks,
    }  # fmt: skip


def _raise_counter(tx: Connection, name: str, value: int) -> None:
    tx.execute(update(counters).where(counters.c.name == name, counters.c.value < value).values(value=literal(value)))
