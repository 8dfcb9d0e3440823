"""How does what is published get another path, in one transaction?

A publication keeps its id, its objects and their keys; it gets a new path and a new sequence number, as if it were published there now.
A folder moves with everything below it. Versions that were replaced and are still kept go along, before the one that replaced them, so
that none of them is ever the newest at a path. What is at the target is superseded, as by a publish.

The commit records say where it was: each becomes owed again, and until it is written anew the tier does not count. A rebuild that finds
an old record and a new one of the same publication goes by the higher sequence; one that finds old ones only gives the state before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, bindparam, delete, func, literal, select, update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

from ckptstore import paths
from ckptstore.catalog.core import Core, chunks, insert_unless_there, lock_namespace
from ckptstore.catalog.entries import add_entry, below, published_below, refuse_taken_path, refuse_to_take_away, remove_entries, visible_at
from ckptstore.catalog.publish import supersede
from ckptstore.catalog.schema import attachments, counters, entries, objects, owed_records, publications, tier_commits
from ckptstore.errors import AlreadyExists, InvalidInput, NotFound, PathConflict

#: Publications that one transaction moves: it holds the namespace meanwhile, which every publish waits for.
MOST_AT_ONCE = 10_000


class _octets(FunctionElement[int]):
    """The length of a text in bytes of UTF-8."""

    type = BigInteger()
    inherit_cache = True


@compiles(_octets, "sqlite")
def _octets_sqlite(element: _octets, compiler: Any, **options: Any) -> str:
    return f"length(CAST({compiler.process(element.clauses, **options)} AS BLOB))"


@compiles(_octets, "postgresql")
def _octets_postgresql(element: _octets, compiler: Any, **options: Any) -> str:
    return f"octet_length({compiler.process(element.clauses, **options)})"


class Moving(Core):
    def move(self, source: str, target: str, *, replace: bool = False) -> list[str]:
        """Give what is at `source` the path `target`; the new paths of all publications that were moved, in byte order.

        AlreadyExists if something is published at `target` and `replace` was not asked for; a folder never replaces. PathConflict for a
        file inside a publication, and a target that is a folder or lies inside a publication. NotFound.
        """
        paths.check_path(source, operation="move")
        paths.check_path(target, operation="move")
        if target == source or target.startswith(source + "/"):
            raise InvalidInput("it cannot be moved into itself", operation="move", subject=source)
        return self._db.write("move", lambda tx: self._move(tx, source, target, replace), source)

    def _move(self, tx: Connection, source: str, target: str, replace: bool) -> list[str]:
        """Paths are the caller's to check: also what users may not name can be moved to and from."""
        sequence = lock_namespace(tx)
        is_folder = _refuse_what_cannot_move(tx, source)
        there = refuse_taken_path(tx, target, replace, "move")
        if is_folder and target in there:
            raise AlreadyExists("something is published there", operation="move", subject=target, hint="remove it, or choose another path")
        rows = _publications_at(tx, source)
        if len(rows) > MOST_AT_ONCE:
            raise InvalidInput(
                f"more than {MOST_AT_ONCE} checkpoints and files lie below it", operation="move", subject=source, hint="move its folders"
            )
        _refuse_long_paths(tx, rows, len(target.encode()) - len(source.encode()))
        if (old := there.get(target)) is not None:
            supersede(tx, old)
        # One number more than there are publications: it tells those who look for changes that something is gone from where it was.
        tx.execute(update(counters).where(counters.c.name == "sequence").values(value=counters.c.value + len(rows)))
        moved = [(row, target + row.path[len(source) :]) for row in rows]
        for _, path in moved:
            paths.check_stored_path(path, operation="move")
        _rename(tx, moved, sequence)
        live = sorted(((path, row.publication_id) for row, path in moved if row.state == "live"))
        for path, publication_id in live:
            add_entry(tx, path, publication_id, there)
        remove_entries(tx, _entries_at(tx, source))
        moved_ids = [row.publication_id for row in rows]
        owe_records(tx, self.node, moved_ids)
        for ids in chunks(moved_ids):
            tx.execute(delete(tier_commits).where(tier_commits.c.publication_id.in_(ids)))
        return [path for path, _ in live]


def _refuse_what_cannot_move(tx: Connection, source: str) -> bool:
    """Whether it is a folder."""
    refuse_to_take_away(tx, source, "move")
    entry, rest = visible_at(tx, source)
    if entry is None or (rest and entry.publication_id is None):
        raise NotFound("nothing is published there", operation="move", subject=source)
    if rest:
        why = f"{entry.path} is published: a published folder is closed"
        raise PathConflict(why, operation="move", subject=source, hint=f"move {entry.path}")
    low, high = below(source)
    here = (attachments.c.path == source) | ((attachments.c.path >= low) & (attachments.c.path < high))
    if (attached := tx.execute(select(attachments.c.path).where(here).limit(1)).scalar_one_or_none()) is not None:
        raise PathConflict(f"{attached} is attached", operation="move", subject=source, hint=f"detach {attached}, and attach it elsewhere")
    return entry.publication_id is None


def _publications_at(tx: Connection, path: str) -> Sequence[Row[*tuple[Any, ...]]]:
    """What is kept at and below a path, held, in the order of publishing."""
    query = select(publications.c.publication_id, publications.c.path, publications.c.state)
    kept = query.where(published_below(path, "live", "superseded"))
    return tx.execute(kept.order_by(publications.c.sequence).limit(MOST_AT_ONCE + 1).with_for_update()).all()


def _entries_at(tx: Connection, path: str) -> list[str]:
    low, high = below(path)
    inside = select(entries.c.path).where(entries.c.path >= low, entries.c.path < high)
    return [path, *tx.execute(inside).scalars()]


def _refuse_long_paths(tx: Connection, rows: Sequence[Row[*tuple[Any, ...]]], longer_by: int) -> None:
    """InvalidInput if a file would come to lie at a path that is longer than paths may be."""
    for page in chunks(rows):
        ids = [row.publication_id for row in page]
        whole = _octets(publications.c.path) + _octets(objects.c.name) + 1
        joined = select(publications.c.path).join(objects, objects.c.attempt_id == publications.c.publication_id)
        longest = joined.where(publications.c.publication_id.in_(ids), objects.c.name != "", whole > paths.MAX_PATH_BYTES - longer_by)
        if longer_by > 0 and (path := tx.execute(longest.limit(1)).scalar_one_or_none()) is not None:
            why = f"the path of a file would have more than {paths.MAX_PATH_BYTES} bytes"
            raise InvalidInput(why, operation="move", subject=path)


def _rename(tx: Connection, moved: Sequence[tuple[Row[*tuple[Any, ...]], str]], sequence: int) -> None:
    renamed = update(publications).where(publications.c.publication_id == bindparam("moved_id"))
    rows = [
        {"moved_id": row.publication_id, "path": path, "parent": paths.parent_and_name(path)[0], "sequence": sequence + position}
        for position, (row, path) in enumerate(moved)
    ]
    changed: dict[str, Any] = {name: bindparam(name) for name in ("path", "parent", "sequence")}
    tx.execute(renamed.values(**changed, published_sequence=None), rows)


def owe_records(tx: Connection, me: str, publication_ids: Sequence[str]) -> None:
    """Wherever a commit record lies, it has to be written anew."""
    for ids in chunks(publication_ids):
        lies = tier_commits.c.publication_id.in_(ids)
        owner = func.coalesce(func.nullif(tier_commits.c.place, ""), literal(me))
        rows = (
            select(tier_commits.c.publication_id, tier_commits.c.tier, tier_commits.c.place, owner, publications.c.opened)
            .join(publications, publications.c.publication_id == tier_commits.c.publication_id)
            .where(lies)
        )
        tx.execute(insert_unless_there(tx, owed_records).from_select(["publication_id", "tier", "place", "owner", "opened"], rows))
