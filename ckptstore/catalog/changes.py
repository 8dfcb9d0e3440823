"""What changed in the namespace since somebody last looked? The numbers that it hands out tell: each change of it takes at least one.

A publication has its number beside its path, so what was published is told by path. A removal, a move and an attachment leave no number
with a path: then it is only known that something changed. That is told, too, whenever the numbers do not all belong to publications.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, literal, select

from ckptstore.catalog.core import Core, chunks
from ckptstore.catalog.entries import below, in_state
from ckptstore.catalog.model import Publication
from ckptstore.catalog.schema import counters, objects, publications
from ckptstore.catalog.views import read_publications

#: More paths than this are not told one by one.
MOST_PATHS = 256


@dataclass(frozen=True)
class NamespaceChanges:
    """`paths` were published since; None: something else happened, and anything may have changed."""

    sequence: int
    paths: tuple[str, ...] | None


class Changes(Core):
    def namespace_sequence(self) -> int:
        """Greater after every change of the namespace, on whatever node."""
        wanted = select(counters.c.value).where(counters.c.name == "sequence")
        return self._db.read("look for changes", lambda tx: int(tx.execute(wanted).scalar_one()))

    def published_since(self, sequence: int, path: str, *, limit: int = 1000) -> list[Publication]:
        """What was published after that number at or below a path, and is still there, in the order of publishing."""
        low, high = below(path)
        where = publications.c.path.concat("")  # looked up by the number, which few are above, and not by the path
        here = (where == path) | ((where >= low) & (where < high))
        query = select(publications).where(publications.c.sequence > sequence, in_state("live"), here)

        def work(tx: Connection) -> list[Publication]:
            return read_publications(tx, tx.execute(query.order_by(publications.c.sequence).limit(limit)).all(), self._tiers)

        return self._db.read("look for changes", work, path)

    def publications_by_id(self, publication_ids: Sequence[str]) -> dict[str, Publication]:
        """Those of these that are known, of whatever state, by id."""

        def work(tx: Connection) -> dict[str, Publication]:
            found: dict[str, Publication] = {}
            for ids in chunks(publication_ids):
                rows = tx.execute(select(publications).where(publications.c.publication_id.in_(ids))).all()
                found |= {item.publication_id: item for item in read_publications(tx, rows, self._tiers)}
            return found

        return self._db.read("look up publications", work)

    def changes_since(self, sequence: int) -> NamespaceChanges:
        """What changed after the change that had this number."""
        return self._db.read("look for changes", lambda tx: _changes_since(tx, sequence))


def _changes_since(tx: Connection, sequence: int) -> NamespaceChanges:
    now = int(tx.execute(select(counters.c.value).where(counters.c.name == "sequence")).scalar_one())
    if not 0 <= now - sequence <= MOST_PATHS:
        return NamespaceChanges(now, None)
    since = publications.c.sequence.between(sequence + 1, now)
    # What was moved keeps the keys of the path where it was published, and that path has changed, too.
    own_key = literal("objects").concat(publications.c.path)
    moved = func.substr(objects.c.key, 1, func.length(own_key)) != own_key
    rows = tx.execute(select(publications.c.path, publications.c.publication_id, publications.c.state).where(since)).all()
    paths = tuple(row.path for row in rows if row.state in ("live", "superseded"))
    from_elsewhere = select(func.count()).select_from(publications.join(objects, objects.c.attempt_id == publications.c.publication_id))
    if len(paths) != now - sequence or tx.execute(from_elsewhere.where(since, moved)).scalar_one():
        return NamespaceChanges(now, None)
    return NamespaceChanges(now, paths)
