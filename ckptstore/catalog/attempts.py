"""How does a try at saving go from its first rank's arrival to complete, or aborted?

An attempt is one row; (path, token, ordinal) names it. Every transition locks that row first, looks at its state, and changes it and
the rank's row in the same transaction; so arrivals, aborts and expiry exclude each other on all nodes, and exactly one caller makes
an attempt complete. An object's id is recorded, by `join` or `add_objects`, before a byte of it is written anywhere; when an attempt
is aborted, each of its objects gets a chore in every place that may hold bytes of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, exists, insert, select, true, update

from ckptstore import paths
from ckptstore.catalog.core import insert_unless_there, next_value, upsert
from ckptstore.catalog.deletion import queue_object_deletions, release_references
from ckptstore.catalog.digests import Digests
from ckptstore.catalog.entries import refuse_taken_path
from ckptstore.catalog.faults import Race
from ckptstore.catalog.joining import check_join, check_name, record_folders, refuse_different
from ckptstore.catalog.model import AttemptState, AttemptView, Join, Kind, NewObject, RankState, StoredFile, Ticket
from ckptstore.catalog.schema import attempts, chores, inner_folders, nodes, now_s, objects, ranks, replicas
from ckptstore.catalog.shard_documents import ShardDocuments, forget_ended
from ckptstore.catalog.storing import UNFINISHED, Stored, queue_leftover, store_objects
from ckptstore.catalog.views import ATTEMPT_COLUMNS, attempt_view, file_columns, stored_file
from ckptstore.errors import AttemptAborted, InvalidInput, NotFound

#: How long an aborted attempt's row stays, for waiters that ask late, in seconds.
ABORTED_KEPT_S = 3600.0
#: Attempts that one call of `expire` ends or purges at most.
EXPIRED_PER_CALL = 500
_PAGE = 1000


class Attempts(ShardDocuments):
    def join(self, join: Join, names: Sequence[str]) -> Ticket:
        """Take part in an attempt as one rank, opening it if this is the first to come, and record an id for each file. Idempotent."""
        check_join(join, names)
        return self._db.write("join attempt", lambda tx: self._join(tx, join, names), join.path)

    def add_objects(self, attempt_id: str, rank: int, names: Sequence[str]) -> tuple[NewObject, ...]:
        """Record ids for more files of an attempt. A name that is there already keeps its id."""

        def work(tx: Connection) -> tuple[NewObject, ...]:
            attempt = locked_attempt(tx, attempt_id, "add files")
            _refuse_ended(attempt, "add files")
            for name in names:
                check_name(attempt.path, Kind(attempt.kind), name)
            tx.execute(update(attempts).where(attempts.c.attempt_id == attempt_id).values(moved_at_s=now_s()))
            return self._record_objects(tx, attempt_id, attempt.path, rank, names)

        return self._db.write("add files", work, attempt_id)

    def progress(self, attempt_id: str) -> None:
        """Say that the attempt lives. Of an attempt that has ended, nothing."""
        moved = update(attempts).where(attempts.c.attempt_id == attempt_id, attempts.c.state.in_(UNFINISHED)).values(moved_at_s=now_s())
        self._db.write("note progress", lambda tx: tx.execute(moved), attempt_id)

    def snapshot_taken(self, attempt_id: str, rank: int) -> AttemptView:
        """STAGING → SNAPSHOT: the daemon owns the rank's bytes. AttemptAborted if the attempt was aborted."""

        def work(tx: Connection) -> AttemptView:
            attempt = locked_attempt(tx, attempt_id, "hand over")
            refuse_aborted(attempt, "hand over")
            if attempt.state != AttemptState.OPEN:
                return attempt_view(attempt)
            _rank_state(tx, attempt_id, rank, "hand over")
            taken = update(ranks).where(ranks.c.attempt_id == attempt_id, ranks.c.rank == rank, ranks.c.state == RankState.STAGING)
            if tx.execute(taken.values(state=RankState.SNAPSHOT)).rowcount == 0:
                return attempt_view(attempt)
            return _moved(tx, attempt_id, snapshots=attempts.c.snapshots + 1)

        return self._db.write("hand over", work, attempt_id)

    def object_stored(self, object_id: str, digests: Digests, *, tier: str, stored_bytes: int | None = None) -> bool:
        """Note an object's size and digests, and its first replica. False if it is no longer wanted: the caller deletes the bytes."""
        row = self._tier(tier)
        place = self._place(row)

        def work(tx: Connection) -> bool:
            mine = select(objects.c.attempt_id).where(objects.c.object_id == object_id).scalar_subquery()
            moved = update(attempts).where(attempts.c.attempt_id == mine, attempts.c.state.in_(UNFINISHED)).values(moved_at_s=now_s())
            unfinished = tx.execute(moved).rowcount > 0
            if unfinished:
                filled = {"size_bytes": digests.size_bytes, "root": digests.root, "blocks": digests.blocks, "node": self.node}
                tx.execute(update(objects).where(objects.c.object_id == object_id, objects.c.root.is_(None)).values(**filled))
            stored = tx.execute(
                select(objects.c.root, objects.c.attempt_id, attempts.c.state)
                .join(attempts, attempts.c.attempt_id == objects.c.attempt_id)
                .where(objects.c.object_id == object_id)
            ).first()
            if stored is None or stored.state == AttemptState.ABORTED:
                if stored is not None:
                    queue_leftover(tx, stored.attempt_id, object_id, tier, place, self.node)
                return False
            if stored.root != digests.root:
                raise InvalidInput("other bytes were stored for this object before", operation="store object", subject=object_id, tier=tier)
            found = {"verified_at_s": now_s(), "used_at_s": now_s(), "damaged": False, "stored_bytes": stored_bytes}
            upsert(tx, replicas, {"object_id": object_id, "tier": tier, "place": place} | found, list(found))
            return True

        return self._db.write("store object", work, object_id)

    def objects_stored(self, attempt_id: str, stored: Mapping[str, Stored], *, tier: str) -> bool:
        """`object_stored` for many objects of one attempt, by id, in one transaction."""
        row = self._tier(tier)
        place = self._place(row)
        return self._db.write("store objects", lambda tx: store_objects(tx, self.node, attempt_id, stored, row, place), attempt_id)

    def rank_stored(self, attempt_id: str, rank: int, *, index: str = "") -> tuple[AttemptView, bool]:
        """→ STORED. True for the one caller, over all nodes, whose rank made the attempt complete.

        `index`: the file of a checkpoint that this caller stores next; it is recorded in the same transaction, as `add_objects` does it.
        """

        def work(tx: Connection) -> tuple[AttemptView, bool]:
            attempt = locked_attempt(tx, attempt_id, "finish rank")
            refuse_aborted(attempt, "finish rank")
            if attempt.state != AttemptState.OPEN:
                return attempt_view(attempt), False
            before = _rank_state(tx, attempt_id, rank, "finish rank")
            if before is RankState.STORED:
                return attempt_view(attempt), False
            missing = select(objects.c.name).where(objects.c.attempt_id == attempt_id, objects.c.rank == rank, objects.c.root.is_(None))
            if (name := tx.execute(missing.limit(1)).scalar_one_or_none()) is not None:
                raise InvalidInput(f"the file {name!r} of rank {rank} is not stored yet", operation="finish rank", subject=attempt_id)
            tx.execute(update(ranks).where(ranks.c.attempt_id == attempt_id, ranks.c.rank == rank).values(state=RankState.STORED))
            complete = attempt.stored + 1 == attempt.world_size
            view = _moved(
                tx,
                attempt_id,
                stored=attempts.c.stored + 1,
                snapshots=attempts.c.snapshots + (1 if before is RankState.STAGING else 0),
                state=AttemptState.COMPLETE if complete else AttemptState.OPEN,
            )
            if complete and index and view.kind is Kind.CHECKPOINT:
                self._record_objects(tx, attempt_id, attempt.path, 0, [index])
            return view, complete

        return self._db.write("finish rank", work, attempt_id)

    def abort(self, attempt_id: str, reason: str) -> AttemptView:
        """End an attempt without a checkpoint. Nothing if it is aborted already; InvalidInput if it is published."""

        def work(tx: Connection) -> AttemptView:
            attempt = locked_attempt(tx, attempt_id, "abort")
            if attempt.state == AttemptState.PUBLISHED:
                raise InvalidInput("the attempt is published", operation="abort", subject=attempt_id, hint="remove the path instead")
            return attempt_view(attempt) if attempt.state == AttemptState.ABORTED else self._abort(tx, attempt_id, reason)

        return self._db.write("abort", work, attempt_id)

    def expire(self, idle_s: float) -> list[AttemptView]:
        """Abort open attempts that have not moved for `idle_s`, forget those aborted long ago, and say that this node lives."""

        def work(tx: Connection) -> list[AttemptView]:
            self._heard(tx)
            idle = (attempts.c.state == AttemptState.OPEN, attempts.c.moved_at_s < now_s() - idle_s)
            expired = self._abort_all(tx, idle, f"no progress for {idle_s:g} s")
            self._purge_aborted(tx)
            forget_ended(tx)
            return expired

        return self._db.write("expire attempts", work)

    def abandon(self, node: str, reason: str) -> list[AttemptView]:
        """At a daemon's start: abort the open attempts whose bytes were in that node's memory.

        Attempts aborted before get their chores anew: a put that the crash cut off may have left an object behind the first ones.
        """

        def work(tx: Connection) -> list[AttemptView]:
            in_memory = ranks.c.state.in_((RankState.STAGING, RankState.SNAPSHOT))
            lost = exists().where(ranks.c.attempt_id == attempts.c.attempt_id, ranks.c.node == node, in_memory)
            views = self._abort_all(tx, (attempts.c.state == AttemptState.OPEN, lost), reason)
            ended = select(attempts.c.attempt_id).where(attempts.c.state == AttemptState.ABORTED)
            queue_object_deletions(tx, self.node, objects.c.attempt_id.in_(ended) & (objects.c.node == node))
            return views

        return self._db.write("abandon attempts", work, node)

    def session_lost(self, session: str, reason: str) -> list[AttemptView]:
        """Abort the open attempts for which that client had not handed over its bytes."""
        lost = exists().where(ranks.c.attempt_id == attempts.c.attempt_id, ranks.c.session == session, ranks.c.state == RankState.STAGING)
        conditions = (attempts.c.state == AttemptState.OPEN, lost)
        return self._db.write("end session", lambda tx: self._abort_all(tx, conditions, reason), session)

    def attempt(self, attempt_id: str) -> AttemptView:
        query = select(*ATTEMPT_COLUMNS).where(attempts.c.attempt_id == attempt_id)
        row = self._db.read("look up attempt", lambda tx: tx.execute(query).first(), attempt_id)
        if row is None:
            raise NotFound("no such attempt is known", operation="look up attempt", subject=attempt_id)
        return attempt_view(row)

    def attempts(self, states: Sequence[AttemptState], *, node: str | None = None, session: str | None = None) -> list[AttemptView]:
        """Attempts in these states, oldest first; with `node` or `session`, those that have not ended with such a rank."""
        query = select(*ATTEMPT_COLUMNS).where(attempts.c.state.in_(list(states))).order_by(attempts.c.opened)
        if node is not None or session is not None:
            who = (ranks.c.node == node if node is not None else true()) & (ranks.c.session == session if session is not None else true())
            query = query.where(exists().where(ranks.c.attempt_id == attempts.c.attempt_id, who))
        return [attempt_view(row) for row in self._db.read("list attempts", lambda tx: tx.execute(query).all())]

    def attempt_files(self, attempt_id: str, *, with_blocks: bool = False) -> Iterator[StoredFile]:
        """The files of an attempt in the order of their names, read page by page; one whose bytes are not stored has the root ""."""
        after: str | None = None
        while True:
            condition = objects.c.name > after if after is not None else true()
            query = select(*file_columns(with_blocks)).where(objects.c.attempt_id == attempt_id, condition)
            page = self._db.read("list files", lambda tx, q=query: tx.execute(q.order_by(objects.c.name).limit(_PAGE)).all(), attempt_id)  # type: ignore[misc]
            yield from map(stored_file, page)
            if len(page) < _PAGE:
                return
            after = page[-1].name

    # --- joining ---------------------------------------------------------------------------------------------------------------

    def _join(self, tx: Connection, join: Join, names: Sequence[str]) -> Ticket:
        named = (attempts.c.path == join.path, attempts.c.token == join.token, attempts.c.ordinal == join.ordinal)
        attempt = tx.execute(select(*ATTEMPT_COLUMNS).where(*named).with_for_update()).first()
        if attempt is None:
            attempt_id = self._open(tx, join)
            return Ticket(attempt_id, AttemptState.OPEN, self._record_objects(tx, attempt_id, join.path, join.rank, names))
        _refuse_ended(attempt, "join attempt")
        refuse_different(attempt, join)
        self._join_rank(tx, attempt, join)
        return Ticket(
            attempt.attempt_id, AttemptState(attempt.state), self._record_objects(tx, attempt.attempt_id, join.path, join.rank, names)
        )

    def _open(self, tx: Connection, join: Join) -> str:
        refuse_taken_path(tx, join.path, join.replace, "save")
        opened = next_value(tx, "opened")
        row = {
            "attempt_id": paths.new_id(), "path": join.path, "token": join.token, "ordinal": join.ordinal, "kind": join.kind,
            "state": AttemptState.OPEN, "replaces": join.replace, "world_size": join.world_size, "step": join.step,
            "metadata": join.metadata, "joined": 1, "snapshots": 0, "stored": 0, "opened": opened,
            "opened_at_s": now_s(), "moved_at_s": now_s(),
        }  # fmt: skip
        if tx.execute(insert_unless_there(tx, attempts).values(**row)).rowcount == 0:
            raise Race("another rank opened the attempt at the same time")
        tx.execute(insert(ranks), self._rank_row(str(row["attempt_id"]), join))
        return str(row["attempt_id"])

    def _rank_row(self, attempt_id: str, join: Join) -> dict[str, Any]:
        return {"attempt_id": attempt_id, "rank": join.rank, "node": join.node, "session": join.session, "state": RankState.STAGING}

    def _join_rank(self, tx: Connection, attempt: Row[Any], join: Join) -> None:
        known = tx.execute(select(ranks.c.session).where(ranks.c.attempt_id == attempt.attempt_id, ranks.c.rank == join.rank)).first()
        if known is None:
            tx.execute(insert(ranks), self._rank_row(attempt.attempt_id, join))
            _moved(tx, attempt.attempt_id, joined=attempts.c.joined + 1)
        elif known.session != join.session:
            raise InvalidInput(
                f"rank {join.rank} has joined this attempt already, from another process",
                operation="join attempt",
                subject=join.path,
                hint="give every process its own rank, and every process group its own token",
            )

    def _record_objects(self, tx: Connection, attempt_id: str, path: str, rank: int, names: Sequence[str]) -> tuple[NewObject, ...]:
        known = select(objects.c.name, objects.c.object_id, objects.c.key, objects.c.rank)
        known = known.where(objects.c.attempt_id == attempt_id, objects.c.name.in_(names))
        rows = {row.name: row for row in tx.execute(known)} if names else {}
        made: dict[str, NewObject] = {}
        for name in names:
            if name in rows and rows[name].rank != rank:
                raise InvalidInput(f"rank {rows[name].rank} has a file of the name {name!r} already", operation="add files", subject=path)
            object_id = rows[name].object_id if name in rows else paths.new_id()
            key = paths.object_key(paths.join(path, name) if name else path, object_id)
            made.setdefault(name, NewObject(object_id, name, key))
        new = [item for item in made.values() if item.name not in rows]
        record_folders(tx, attempt_id, path, [item.name for item in new])
        if new:
            tx.execute(insert(objects), [self._object_row(attempt_id, rank, item) for item in new])
        return tuple(made[name] for name in names)

    def _object_row(self, attempt_id: str, rank: int, item: NewObject) -> dict[str, Any]:
        folder, _, leaf = item.name.rpartition("/")
        return {
            "object_id": item.object_id, "attempt_id": attempt_id, "rank": rank, "name": item.name, "folder": folder, "leaf": leaf,
            "key": item.key, "node": self.node,
        }  # fmt: skip

    # --- ending ----------------------------------------------------------------------------------------------------------------

    def _abort(self, tx: Connection, attempt_id: str, reason: str) -> AttemptView:
        """Abort a locked, unfinished attempt."""
        view = _moved(tx, attempt_id, state=AttemptState.ABORTED, reason=reason)
        tx.execute(delete(ranks).where(ranks.c.attempt_id == attempt_id))
        queue_object_deletions(tx, self.node, objects.c.attempt_id == attempt_id)
        release_references(tx, self.node, attempt_id)
        return view

    def _abort_all(self, tx: Connection, conditions: Sequence[Any], reason: str) -> list[AttemptView]:
        found = select(attempts.c.attempt_id).where(*conditions).order_by(attempts.c.attempt_id).limit(EXPIRED_PER_CALL)
        views = []
        for attempt_id in tx.execute(found).scalars().all():
            # Locked and looked at again: what another transaction moved meanwhile is no longer idle.
            if tx.execute(select(attempts.c.attempt_id).where(attempts.c.attempt_id == attempt_id, *conditions).with_for_update()).first():
                views.append(self._abort(tx, attempt_id, reason))
        return views

    def _purge_aborted(self, tx: Connection) -> None:
        """Forget attempts aborted long ago whose bytes are gone, unless a node that may hold more has not been heard of since."""
        unheard = (
            exists()
            .where(objects.c.attempt_id == attempts.c.attempt_id, nodes.c.node == objects.c.node)
            .where(nodes.c.seen_s < attempts.c.moved_at_s + ABORTED_KEPT_S)
        )
        owed = exists().where(chores.c.publication_id == attempts.c.attempt_id)
        old = (
            select(attempts.c.attempt_id)
            .where(attempts.c.state == AttemptState.ABORTED, attempts.c.moved_at_s < now_s() - ABORTED_KEPT_S, ~owed, ~unheard)
            .limit(EXPIRED_PER_CALL)
        )
        ids = tx.execute(old).scalars().all()
        if not ids:
            return
        for table in (inner_folders, objects, attempts):
            tx.execute(delete(table).where(table.c.attempt_id.in_(ids)))


# --- the row and its states ----------------------------------------------------------------------------------------------------


def locked_attempt(tx: Connection, attempt_id: str, operation: str) -> Row[Any]:
    row = tx.execute(select(*ATTEMPT_COLUMNS).where(attempts.c.attempt_id == attempt_id).with_for_update()).first()
    if row is None:
        raise NotFound("no such attempt is known", operation=operation, subject=attempt_id)
    return row


def _moved(tx: Connection, attempt_id: str, **values: Any) -> AttemptView:
    changed = update(attempts).where(attempts.c.attempt_id == attempt_id).values(moved_at_s=now_s(), **values)
    return attempt_view(tx.execute(changed.returning(*ATTEMPT_COLUMNS)).one())


def _rank_state(tx: Connection, attempt_id: str, rank: int, operation: str) -> RankState:
    state = tx.execute(select(ranks.c.state).where(ranks.c.attempt_id == attempt_id, ranks.c.rank == rank)).scalar_one_or_none()
    if state is None:
        raise NotFound(f"rank {rank} has not joined this attempt", operation=operation, subject=attempt_id)
    return RankState(state)


def refuse_aborted(attempt: Row[Any], operation: str) -> None:
    if attempt.state == AttemptState.ABORTED:
        raise AttemptAborted(attempt.reason or "it was aborted", operation=operation, subject=attempt.path)


def _refuse_ended(attempt: Row[Any], operation: str) -> None:
    refuse_aborted(attempt, operation)
    if attempt.state == AttemptState.PUBLISHED:
        raise InvalidInput("the attempt is published already", operation=operation, subject=attempt.path)
