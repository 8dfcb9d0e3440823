"""Whether a publication is held, as the transactions ask that would end it. See `holding` for what that means."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, select

from ckptstore.catalog.core import chunks
from ckptstore.catalog.schema import holds, publications
from ckptstore.errors import AlreadyExists


def is_held(tx: Connection, publication_id: str) -> bool:
    return tx.execute(select(holds.c.why).where(holds.c.publication_id == publication_id)).first() is not None


def refuse_held(tx: Connection, publication_ids: Iterable[str], operation: str, path: str) -> None:
    """AlreadyExists, which names it, if one of them is held."""
    for ids in chunks(publication_ids):
        query = select(holds.c.why, publications.c.path).join(publications, publications.c.publication_id == holds.c.publication_id)
        if (held := tx.execute(query.where(holds.c.publication_id.in_(ids)).limit(1)).first()) is not None:
            what = "it is held" if held.path == path else f"{held.path} is held"
            raise AlreadyExists(f"{what}: {held.why}", operation=operation, subject=path, hint=f"ckptstore release {held.path}")
