"""Which joins and which names does an attempt accept?

The rules only: nothing here decides what becomes of the attempt. `record_folders` writes the folders above an attempt's files, which
listings of the publication show, and refuses a name that would be a file and a folder at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from ckptstore import paths
from ckptstore.catalog.core import insert_unless_there
from ckptstore.catalog.model import Join, Kind
from ckptstore.catalog.schema import inner_folders, objects
from ckptstore.errors import InvalidInput


def refuse_different(attempt: Row[Any], join: Join) -> None:
    for what, first, mine in (
        ("world_size", attempt.world_size, join.world_size),
        ("kind", attempt.kind, join.kind),
        ("replace", attempt.replaces, join.replace),
    ):
        if first != mine:
            raise InvalidInput(
                f"this rank says {what}={mine}, the first to join said {first}", operation="join attempt", subject=join.path
            )


def check_join(join: Join, names: Sequence[str]) -> None:
    paths.check_path(join.path, operation="save")
    if join.world_size < 1 or not 0 <= join.rank < join.world_size:
        raise InvalidInput(f"rank {join.rank} is not within world_size {join.world_size}", operation="join attempt", subject=join.path)
    if len(set(names)) != len(names):
        raise InvalidInput("two files have the same name", operation="join attempt", subject=join.path)
    for name in names:
        check_name(join.path, join.kind, name)


def check_name(path: str, kind: Kind, name: str) -> None:
    if kind is Kind.FILE:
        if name != "":
            raise InvalidInput("a single file has no name below its path", operation="add files", subject=path)
        return
    paths.check_relative(name, operation="add files")
    paths.check_path(paths.join(path, name), operation="add files")


def record_folders(tx: Connection, attempt_id: str, path: str, names: Sequence[str]) -> None:
    """Note the folders above `names`. InvalidInput if a name would be a file and a folder at once."""
    above = {folder[1:] for name in names for folder in paths.ancestors("/" + name)}
    both = above.intersection(names)
    if names and not both:
        folders = select(inner_folders.c.folder, inner_folders.c.leaf).where(inner_folders.c.attempt_id == attempt_id)
        both = {f"{row.folder}/{row.leaf}" if row.folder else row.leaf for row in tx.execute(folders)}.intersection(names)
    if above and not both:
        files = select(objects.c.name).where(objects.c.attempt_id == attempt_id, objects.c.name.in_(sorted(above)))
        both = set(tx.execute(files).scalars())
    if both:
        raise InvalidInput(f"{min(both)!r} would be a file and a folder at once", operation="add files", subject=path)
    if above:
        rows = [{"attempt_id": attempt_id, "folder": name.rpartition("/")[0], "leaf": name.rpartition("/")[2]} for name in sorted(above)]
        tx.execute(insert_unless_there(tx, inner_folders), rows)
