"""Which paths are taken, and how does the tree of entries change?

`entries` has one row for each visible publication and attached path, and one for each folder above these; a folder exists exactly as long
as something lies below it. Functions that change it need the namespace's lock (`core.lock_namespace`); `refuse_taken_path` may be asked
without it, as an early answer, and is asked again under it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, select, update

from ckptstore import paths
from ckptstore.catalog.core import insert_unless_there
from ckptstore.catalog.held import refuse_held
from ckptstore.catalog.schema import attachments, entries, publications
from ckptstore.errors import AlreadyExists, PathConflict


def refuse_taken_path(tx: Connection, path: str, replace: bool, operation: str) -> dict[str, str | None]:
    """AlreadyExists or PathConflict if nothing may be published at `path`; else the entries that are there on the way to it.

    They are given as path → publication id, None for a folder.
    """
    refuse_attached(tx, path, operation)
    above = paths.ancestors(path)
    found = tx.execute(select(entries.c.path, entries.c.publication_id).where(entries.c.path.in_([*above, path])))
    there: dict[str, str | None] = {row.path: row.publication_id for row in found}
    for folder in above:
        if there.get(folder) is not None:
            raise PathConflict(f"{folder} is published: a published folder is closed", operation=operation, subject=path)
    if path in there and there[path] is None:
        raise PathConflict("it is a folder with entries", operation=operation, subject=path, hint="choose a path below it, or remove it")
    if path in there and not replace:
        raise AlreadyExists("something is published there", operation=operation, subject=path, hint="use replace=True, or another path")
    if (old := there.get(path)) is not None:
        refuse_held(tx, [old], operation, path)
    return there


def attached_over(tx: Connection, path: str) -> Row[Any] | None:
    """The attachment at or above `path`."""
    return tx.execute(select(attachments).where(attachments.c.path.in_([*paths.ancestors(path), path]))).first()


def refuse_attached(tx: Connection, path: str, operation: str) -> None:
    """PathConflict if `path` is attached, or lies below what is: nothing of ours can be there."""
    if (over := attached_over(tx, path)) is not None:
        where = "it" if over.path == path else over.path
        why = f"{where} is attached from {over.url}, which is only read"
        raise PathConflict(why, operation=operation, subject=path, hint=f"choose another path, or detach {over.path}")


def refuse_to_take_away(tx: Connection, path: str, operation: str) -> None:
    """PathConflict if what is at `path`, or anything below it, is attached, or lies in what is."""
    refuse_attached(tx, path, operation)
    low, high = below(path)
    inside = select(attachments.c.path).where(attachments.c.path >= low, attachments.c.path < high)
    if (kept := tx.execute(inside).first()) is not None:
        raise PathConflict(f"{kept.path} below it is attached", operation=operation, subject=path, hint=f"detach {kept.path} first")


def add_entry(tx: Connection, path: str, publication_id: str | None, there: dict[str, str | None]) -> None:
    """Make the publication visible at `path`, in place of what is there; without one, an attached folder."""
    if path in there:
        tx.execute(update(entries).where(entries.c.path == path).values(publication_id=publication_id))
        return
    missing = [folder for folder in paths.ancestors(path) if folder not in there]
    rows = [_row(folder, None) for folder in missing] + [_row(path, publication_id)]
    tx.execute(insert_unless_there(tx, entries), rows)


def remove_entries(tx: Connection, gone: Iterable[str]) -> None:
    """Remove these entries, then the folders above them that are left empty."""
    folders: set[str] = set()
    for path in gone:
        tx.execute(delete(entries).where(entries.c.path == path))
        folders.update(paths.ancestors(path))
    for folder in sorted(folders, key=lambda path: path.count("/"), reverse=True):
        if tx.execute(select(entries.c.path).where(entries.c.parent == folder).limit(1)).first() is None:
            tx.execute(delete(entries).where(entries.c.path == folder, entries.c.publication_id.is_(None)))


def visible_at(tx: Connection, path: str) -> tuple[Row[Any] | None, str]:
    """The deepest entry at or above `path`, and what is left of the path below it."""
    above = [*paths.ancestors(path), path]
    found = {row.path: row for row in tx.execute(select(entries).where(entries.c.path.in_(above)))}
    for candidate in reversed(above):
        if candidate in found:
            return found[candidate], path[len(candidate) + 1 :]
    return None, path[1:]


def below(path: str) -> tuple[str, str]:
    """The bounds of the paths below `path`, in byte order: at least the first, less than the second ('0' follows '/')."""
    return ("/", "0") if path == "/" else (path + "/", path + "0")


def published_below(path: str, *states: str, itself: bool = True) -> ColumnElement[bool]:
    """A condition on publications: in one of these states, below the path or (`itself`) at it.

    They are looked up by their paths, or by what else is known of them; see `in_state`.
    """
    low, high = below(path)
    here = (publications.c.path >= low) & (publications.c.path < high)
    if itself:
        here = (publications.c.path == path) | here
    return here & in_state(*states)


def in_state(*states: str) -> ColumnElement[bool]:
    """A condition on publications of which more is known: if it could, SQLite would take the index of the states, and look at all that
    is live anywhere."""
    return publications.c.state.concat("").in_(states)


def _row(path: str, publication_id: str | None) -> dict[str, Any]:
    parent, name = paths.parent_and_name(path)
    return {"path": path, "parent": parent, "name": name, "publication_id": publication_id}
