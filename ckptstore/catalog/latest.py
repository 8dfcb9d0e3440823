"""Which checkpoint of a folder is the newest? The one opened last of those whose every object is within reach of this node.

Two kinds are looked at. A checkpoint that was saved is one publication. One that torch.distributed.checkpoint wrote, file by file, is a
folder of files: see `written_by_file`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sqlalchemy import ColumnElement, Connection, exists, select, true

from ckptstore import paths
from ckptstore.catalog.model import Kind, Publication, TierRow
from ckptstore.catalog.references import needed_objects
from ckptstore.catalog.schema import objects, publications, replicas
from ckptstore.catalog.views import read_publication
from ckptstore.catalog.written_by_file import inside, written_by_file
from ckptstore.errors import NotFound

#: Checkpoints that are looked at in one go.
_PAGE = 16


def latest(tx: Connection, node: str, folder: str, tiers: Mapping[str, TierRow]) -> Publication:
    """The newest checkpoint of the folder. Of one that was written file by file: its `.metadata`, with the folder's path and kind."""
    skipped = 0
    found: Publication | None = None
    for publication in _saved(tx, folder, tiers):
        if _is_within_reach(tx, node, publication.publication_id):
            found = publication
            break
        skipped += 1
    for publication in written_by_file(tx, folder, tiers, after=found.opened if found is not None else 0):
        if _is_folder_within_reach(tx, node, publication.path):
            return publication
        skipped += 1
    if found is not None:
        return found
    why = f"none of its {skipped} checkpoints is whole within reach of this node" if skipped else "the folder has no checkpoint"
    raise NotFound(why, operation="resolve", subject=paths.join(folder, paths.LATEST))


def _saved(tx: Connection, folder: str, tiers: Mapping[str, TierRow]) -> Iterator[Publication]:
    opened: int | None = None
    while True:
        query = select(publications).where(
            publications.c.parent == folder,
            publications.c.state == "live",
            publications.c.kind == Kind.CHECKPOINT,
            publications.c.opened < opened if opened is not None else true(),
        )
        rows = tx.execute(query.order_by(publications.c.opened.desc()).limit(_PAGE)).all()
        for row in rows:
            yield read_publication(tx, row, tiers)
        if len(rows) < _PAGE:
            return
        opened = rows[-1].opened


def _here(node: str) -> ColumnElement[bool]:
    """Condition on `objects`: an undamaged replica is in a shared tier or on this node."""
    return exists().where(replicas.c.object_id == objects.c.object_id, replicas.c.place.in_(("", node)), ~replicas.c.damaged)


def _is_within_reach(tx: Connection, node: str, publication_id: str) -> bool:
    lacking = select(objects.c.object_id).select_from(needed_objects(publication_id)).where(~_here(node))
    return tx.execute(lacking.limit(1)).first() is None


def _is_folder_within_reach(tx: Connection, node: str, folder: str) -> bool:
    held = select(objects.c.object_id).join(publications, publications.c.publication_id == objects.c.attempt_id)
    return tx.execute(held.where(inside(folder), ~_here(node)).limit(1)).first() is None
