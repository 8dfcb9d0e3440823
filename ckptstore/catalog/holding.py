"""What must nobody remove or replace?

A hold belongs to a publication, not to a path: it goes along when that moves. Whatever would end a held publication is refused by the
transaction that would do it: removing it, or a folder above it; replacing it; and taking it away because of a policy.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, select

from ckptstore import paths
from ckptstore.catalog.core import lock_namespace
from ckptstore.catalog.held import hold
from ckptstore.catalog.model import Hold
from ckptstore.catalog.namespace import Namespace
from ckptstore.catalog.schema import holds, publications
from ckptstore.errors import NotFound


class Holding(Namespace):
    def hold(self, path: str, why: str) -> Hold:
        """Let nobody remove or replace what is published at `path` until it is released. Holding again changes the reason."""

        paths.check_path(path, operation="hold")

        def work(tx: Connection) -> Hold:
            lock_namespace(tx)
            return hold(tx, self._published_at(tx, path), why)

        return self._db.write("hold", work, path)

    def release(self, path: str) -> Hold:
        """NotFound if it is not held."""

        def work(tx: Connection) -> Hold:
            found = self._published_at(tx, paths.check_path(path, operation="release"))
            row = tx.execute(select(holds).where(holds.c.publication_id == found.publication_id)).first()
            if row is None:
                raise NotFound("it is not held", operation="release", subject=path)
            tx.execute(delete(holds).where(holds.c.publication_id == found.publication_id))
            return Hold(path=found.path, publication_id=found.publication_id, why=row.why, held_at_s=row.held_at_s)

        return self._db.write("release", work, path)

    def holds(self) -> list[Hold]:
        """All that are held, in the order of their paths."""
        query = select(holds, publications.c.path).join(publications, publications.c.publication_id == holds.c.publication_id)
        rows = self._db.read("list holds", lambda tx: tx.execute(query.order_by(publications.c.path)).all())
        return [Hold(path=row.path, publication_id=row.publication_id, why=row.why, held_at_s=row.held_at_s) for row in rows]
