"""How does a complete attempt become visible, in one transaction?

The transaction holds the namespace's lock from its first statement, so publishes and removes are in one order over the whole store,
which is the order of their sequence numbers. It makes the entry, supersedes what was there, queues the drains into every durable tier
that lacks an object, and notes the commit records that are owed where nothing lacks. The statements work on sets: their number does
not grow with the files.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, exists, func, insert, literal, select, true, update

from ckptstore import paths
from ckptstore.catalog.attempts import Attempts, locked_attempt, refuse_aborted
from ckptstore.catalog.core import TIER_PLACE, lock_namespace, tier_of_object, tier_owner
from ckptstore.catalog.entries import add_entry, refuse_taken_path
from ckptstore.catalog.model import AttemptState, Publication
from ckptstore.catalog.references import needed_objects
from ckptstore.catalog.schema import attempts, drains, now_s, objects, owed_records, publications, ranks, references, replicas, tiers
from ckptstore.catalog.snapshots import answer_requests
from ckptstore.catalog.unkept import skip_tiers
from ckptstore.catalog.views import publication_row, read_publication
from ckptstore.errors import AlreadyExists, CkptStoreError, InvalidInput, PathConflict


class Publishing(Attempts):
    def publish(self, attempt_id: str, *, skips: Collection[str] = ()) -> Publication:
        """COMPLETE → PUBLISHED. Publishing what is published gives it again. It is not drained into the tiers that it `skips`.

        AlreadyExists and PathConflict abort the attempt in the same transaction, and are raised. InvalidInput if ranks are missing, a
        file is not stored, or there is none.
        """
        result = self._db.write("publish", lambda tx: self._publish(tx, attempt_id, skips), attempt_id)
        if isinstance(result, CkptStoreError):
            raise result
        return result

    def _publish(self, tx: Connection, attempt_id: str, skips: Collection[str]) -> Publication | CkptStoreError:
        sequence = lock_namespace(tx)
        attempt = locked_attempt(tx, attempt_id, "publish")
        if attempt.state == AttemptState.PUBLISHED:
            published = publication_row(tx, attempt_id)
            if published is None:
                return InvalidInput("what it published was removed since", operation="publish", subject=attempt.path)
            return read_publication(tx, published, self._tiers)
        refuse_aborted(attempt, "publish")
        if attempt.state != AttemptState.COMPLETE:
            missing = f"{attempt.stored} of {attempt.world_size} ranks have stored their files"
            raise InvalidInput(missing, operation="publish", subject=attempt.path)
        row = self._row(tx, attempt, sequence)
        try:
            there = refuse_taken_path(tx, attempt.path, attempt.replaces, "publish")
        except (AlreadyExists, PathConflict) as refusal:
            self._abort(tx, attempt_id, str(refusal))
            return refusal  # raised by the caller, after the commit
        tx.execute(insert(publications), row)
        add_entry(tx, attempt.path, attempt_id, there)
        if (old := there.get(attempt.path)) is not None:
            supersede(tx, old)
        queue_drains(tx, self.node, attempt_id, attempt.opened, sequence)
        note_owed_records(tx, self.node, attempt_id, attempt.opened)
        skip_tiers(tx, attempt_id, skips)
        answer_requests(tx, attempt)
        tx.execute(
            update(attempts).where(attempts.c.attempt_id == attempt_id).values(state=AttemptState.PUBLISHED, moved_at_s=now_s())
        )
        tx.execute(delete(ranks).where(ranks.c.attempt_id == attempt_id))
        return read_publication(tx, tx.execute(select(publications).where(publications.c.publication_id == attempt_id)).one(), self._tiers)

    def _row(self, tx: Connection, attempt: Row[Any], sequence: int) -> dict[str, Any]:
        counted = select(
            func.count(),
            func.count(objects.c.root),
            func.coalesce(func.sum(objects.c.size_bytes), 0),
            func.count(objects.c.node.distinct()),
            now_s(),
        )
        files, stored, size_bytes, nodes, published_at_s = tx.execute(counted.where(objects.c.attempt_id == attempt.attempt_id)).one()
        summed = select(func.coalesce(func.sum(references.c.size_bytes), 0)).where(references.c.attempt_id == attempt.attempt_id)
        referred_bytes = int(tx.execute(summed).scalar_one())
        if files == 0 or stored < files:
            why = "it has no file" if files == 0 else f"{files - stored} of {files} files are not stored yet"
            raise InvalidInput(why, operation="publish", subject=attempt.path)
        return {
            "publication_id": attempt.attempt_id, "path": attempt.path, "parent": paths.parent_and_name(attempt.path)[0],
            "kind": attempt.kind, "state": "live", "sequence": sequence, "opened": attempt.opened, "world_size": attempt.world_size,
            "step": attempt.step, "metadata": attempt.metadata, "size_bytes": int(size_bytes), "file_count": files, "node_count": nodes,
            "opened_at_s": attempt.opened_at_s, "published_at_s": published_at_s, "referred_bytes": referred_bytes,
        }  # fmt: skip


def supersede(tx: Connection, publication_id: str) -> None:
    """The old version stays until the new one is as durable, but goes no deeper: what was not drained yet never will be.

    Nor will it for others' sake, except for what they refer to.
    """
    tx.execute(update(publications).where(publications.c.publication_id == publication_id).values(state="superseded", ended_at_s=now_s()))
    referred = exists().where(references.c.object_id == drains.c.object_id)
    tx.execute(delete(drains).where(drains.c.publication_id == publication_id, ~referred))


def queue_drains(
    tx: Connection, me: str, publication_id: str, opened: int, sequence: int, *, only: ColumnElement[bool] | None = None
) -> None:
    """One row for each object, those referred to as well, and each durable tier in which it belongs and has no undamaged replica.

    `only` narrows them.
    """
    there = exists().where(
        replicas.c.object_id == objects.c.object_id, replicas.c.tier == tiers.c.name, replicas.c.place == TIER_PLACE, ~replicas.c.damaged
    )
    queued = exists().where(drains.c.object_id == objects.c.object_id, drains.c.tier == tiers.c.name, drains.c.place == TIER_PLACE)
    rows = (
        select(
            objects.c.object_id, tiers.c.name, TIER_PLACE, objects.c.node, objects.c.attempt_id, literal(opened), literal(sequence),
            objects.c.size_bytes, now_s(), now_s(), literal(0),
        )
        .select_from(needed_objects(publication_id).join(tiers, tier_of_object(me, objects.c.node)))
        .where(~there, ~queued, true() if only is None else only)
    )  # fmt: skip
    columns = [
        "object_id", "tier", "place", "owner", "publication_id", "opened", "sequence", "size_bytes", "queued_at_s", "due_s", "tries",
    ]  # fmt: skip
    tx.execute(insert(drains).from_select(columns, rows))


def note_owed_records(tx: Connection, me: str, publication_id: str, opened: int) -> None:
    """A record is owed in each place in which the publication belongs and lacks nothing."""
    here = and_(drains.c.tier == tiers.c.name, drains.c.place == TIER_PLACE)
    own = exists().where(drains.c.publication_id == publication_id, here)
    referred = exists().where(references.c.attempt_id == publication_id, drains.c.object_id == references.c.object_id, here)
    rows = (
        select(literal(publication_id), tiers.c.name, TIER_PLACE, tier_owner(me), literal(opened))
        .select_from(objects.join(tiers, tier_of_object(me, objects.c.node)))
        .where(objects.c.attempt_id == publication_id, ~own, ~referred)
        .distinct()
    )
    tx.execute(insert(owed_records).from_select(["publication_id", "tier", "place", "owner", "opened"], rows))


