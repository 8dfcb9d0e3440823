"""Holding a publication, and asking whether it is held, inside a transaction. See `holding` for what that means."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, select

from ckptstore.catalog.core import chunks, upsert
from ckptstore.catalog.model import Hold, Publication
from ckptstore.catalog.schema import holds, now_s, publications
from ckptstore.errors import AlreadyExists


def hold(tx: Connection, found: Publication, why: str) -> Hold:
    """Under the namespace's lock, as whatever a hold forbids is: one of the two comes first."""
    upsert(tx, holds, {"publication_id": found.publication_id, "why": why, "held_at_s": now_s()}, ("why",))
    row = tx.execute(select(holds).where(holds.c.publication_id == found.publication_id)).one()
    return Hold(path=found.path, publication_id=found.publication_id, why=row.why, held_at_s=row.held_at_s)


def is_held(tx: Connection, publication_id: str) -> bool:
    return tx.execute(select(holds.c.why).where(holds.c.publication_id == publication_id)).first() is not None


def is_any_held(tx: Connection, publication_ids: Iterable[str]) -> bool:
    query = select(holds.c.publication_id).limit(1)
    return any(tx.execute(query.where(holds.c.publication_id.in_(ids))).first() is not None for ids in chunks(publication_ids))


def refuse_held(tx: Connection, publication_ids: Iterable[str], operation: str, path: str) -> None:
    """AlreadyExists, which names it, if one of them is held."""
    for ids in chunks(publication_ids):
        query = select(holds.c.why, publications.c.path).join(publications, publications.c.publication_id == holds.c.publication_id)
        if (held := tx.execute(query.where(holds.c.publication_id.in_(ids)).limit(1)).first()) is not None:
            what = "it is held" if held.path == path else f"{held.path} is held"
            raise AlreadyExists(f"{what}: {held.why}", operation=operation, subject=path, hint=f"ckptstore release {held.path}")
