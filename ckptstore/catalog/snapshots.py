"""Who asks a running job for a checkpoint, which step did its ranks agree on, and which checkpoint answered?

A request has a number of the counter that attempts get theirs from, so "begun after it was asked for" is one comparison: the publish of a
checkpoint in the folder whose attempt has a greater number answers it, in the same transaction.

The ranks of a job (one token) agree by what each has said of how far it goes, which its job's row sums up. It is decided by the last one's
word, under the lock of the request's row, and for good: what a job has agreed on does not change, and one that has not agreed when the
request is answered or too late never will. A request is forgotten when a new one is made and it has been over for `REMEMBERED_S`.
"""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, select, update

from ckptstore import paths
from ckptstore.catalog.core import Core, clock, insert_unless_there, next_value, upsert
from ckptstore.catalog.model import Agreement, Kind, SnapshotRequest
from ckptstore.catalog.schema import now_s, snapshot_jobs, snapshot_ranks, snapshot_requests
from ckptstore.errors import InvalidInput, NotFound

#: How long what became of a request is told, in seconds.
REMEMBERED_S = 86400.0
_asked = snapshot_requests.c
_job = snapshot_jobs.c


class Snapshots(Core):
    def ask_for_snapshot(self, folder: str, why: str, *, token: str = "", for_s: float) -> SnapshotRequest:
        """Record it, for `for_s` from now. A job that is asked to end (`token`) is so once: asking again gives the same request."""
        folder = paths.check_folder(folder, operation="ask for a snapshot")
        request_id = hashlib.sha256(f"{folder}\0{token}".encode()).hexdigest()[:32] if token else paths.new_id()

        def work(tx: Connection) -> SnapshotRequest:
            _forget_old(tx)
            now = clock(tx)
            row = {
                "request_id": request_id, "number": next_value(tx, "opened"), "path": folder, "why": why, "token": token,
                "asked_at_s": now, "until_s": now + for_s,
            }  # fmt: skip
            tx.execute(insert_unless_there(tx, snapshot_requests).values(**row))
            return self._request(tx, request_id)

        return self._db.write("ask for a snapshot", work, folder)

    def snapshot_request(self, request_id: str) -> SnapshotRequest:
        """NotFound for one that is over since long."""
        return self._db.read("look up snapshot request", lambda tx: self._request(tx, request_id), request_id)

    def open_snapshot_requests(self) -> list[SnapshotRequest]:
        """Those that nothing has answered yet, and for which there is still time, oldest first."""
        query = select(snapshot_requests, now_s().label("now")).where(_is_open()).order_by(_asked.number)
        rows = self._db.read("list snapshot requests", lambda tx: tx.execute(query).all())
        return [_read(row) for row in rows]

    def hold_rank(self, request_id: str, token: str, rank: int, world_size: int, holds_at: int) -> Agreement:
        """A rank says how far it goes without knowing more; what all have said by now. After they have agreed, it changes nothing."""

        def work(tx: Connection) -> Agreement:
            asked = self._request(tx, request_id, locked=True)
            agreed = _agreement(tx, asked, token)
            if agreed.at_step is not None or agreed.closed:
                return agreed
            if agreed.world_size not in (0, world_size):
                why = f"the others are {agreed.world_size} ranks, this one says {world_size}"
                raise InvalidInput(why, operation="agree on a snapshot", subject=asked.path)
            row = {"request_id": request_id, "token": token, "rank": rank, "world_size": world_size, "holds_at": holds_at}
            spoke = tx.execute(insert_unless_there(tx, snapshot_ranks).values(**row)).rowcount
            job = {"request_id": request_id, "token": token, "world_size": world_size}
            so_far = {"ranks": agreed.ranks + spoke, "holds_at": holds_at if agreed.holds_at is None else max(agreed.holds_at, holds_at)}
            upsert(tx, snapshot_jobs, job | so_far, tuple(so_far))
            return _agreement(tx, asked, token)

        return self._db.write("agree on a snapshot", work, request_id)

    def agreement(self, request_id: str, token: str) -> Agreement:
        """Of the job with that token."""
        return self._db.read("look up agreement", lambda tx: _agreement(tx, self._request(tx, request_id), token), request_id)

    def agreements(self, request_id: str) -> list[Agreement]:
        """Of all jobs that have heard of it."""
        return self._db.read("look up agreement", lambda tx: _agreements(tx, self._request(tx, request_id)), request_id)

    def _request(self, tx: Connection, request_id: str, *, locked: bool = False) -> SnapshotRequest:
        query = select(snapshot_requests, now_s().label("now")).where(_asked.request_id == request_id)
        row = tx.execute(query.with_for_update() if locked else query).first()
        if row is None:
            raise NotFound("no such request is known", operation="look up snapshot request", subject=request_id)
        return _read(row)


def answer_requests(tx: Connection, attempt: Row[Any]) -> None:
    """What an attempt publishes answers the requests for its folder that were made before it was opened."""
    if attempt.kind != Kind.CHECKPOINT:
        return
    here = _asked.path == paths.parent_and_name(attempt.path)[0]
    answered = update(snapshot_requests).where(here, _asked.number < attempt.opened, _is_open())
    tx.execute(answered.values(answered_by=attempt.attempt_id))


def _is_open() -> ColumnElement[bool]:
    return _asked.answered_by.is_(None) & (_asked.until_s > now_s())


def _read(row: Row[Any]) -> SnapshotRequest:
    return SnapshotRequest(
        request_id=row.request_id,
        number=row.number,
        path=row.path,
        why=row.why,
        token=row.token,
        answered_by=row.answered_by,
        is_open=row.answered_by is None and row.until_s > row.now,
    )


def _agreement(tx: Connection, asked: SnapshotRequest, token: str) -> Agreement:
    """Under the lock of the request's row, or for who only looks."""
    row = tx.execute(select(snapshot_jobs).where(_job.request_id == asked.request_id, _job.token == token)).first()
    return Agreement(token, 0, 0, None, not asked.is_open) if row is None else _read_job(row, asked)


def _read_job(row: Row[Any], asked: SnapshotRequest) -> Agreement:
    whole = row.ranks == row.world_size
    return Agreement(row.token, row.ranks, row.world_size, row.holds_at, not whole and not asked.is_open)


def _agreements(tx: Connection, asked: SnapshotRequest) -> list[Agreement]:
    rows = tx.execute(select(snapshot_jobs).where(_job.request_id == asked.request_id)).all()
    return [_read_job(row, asked) for row in rows]


def _forget_old(tx: Connection) -> None:
    old = select(_asked.request_id).where(_asked.until_s < now_s() - REMEMBERED_S)
    for table in (snapshot_ranks, snapshot_jobs):
        tx.execute(delete(table).where(table.c.request_id.in_(old)))
    tx.execute(delete(snapshot_requests).where(_asked.until_s < now_s() - REMEMBERED_S))
