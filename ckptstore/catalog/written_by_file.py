"""Which folders of files are checkpoints, though nobody published them as such?

torch.distributed.checkpoint writes its files one by one, and renames `.metadata` into their folder when all else is in it. From that moment
the folder counts as one checkpoint, as old as its `.metadata`, whose publication's id it goes by. Without one it is no checkpoint yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from sqlalchemy import ColumnElement, Connection, func, select

from ckptstore import paths
from ckptstore.catalog.entries import published_below
from ckptstore.catalog.model import Kind, Publication, TierRow
from ckptstore.catalog.schema import entries, publications, tier_commits
from ckptstore.catalog.views import read_publication

#: What torch.distributed.checkpoint renames into a folder when all else is in it.
WRITTEN_LAST = ".metadata"


def written_by_file(tx: Connection, folder: str, tiers: Mapping[str, TierRow], *, after: int) -> Iterator[Publication]:
    """The folders in this one that have a `.metadata`, newest first, if they are newer than `after`: that, with their path and kind."""
    inner, last = entries.alias("inner_folder"), entries.alias("written_last")
    query = (
        select(publications)
        .select_from(inner)
        .join(last, (last.c.parent == inner.c.path) & (last.c.name == WRITTEN_LAST))
        .join(publications, publications.c.publication_id == last.c.publication_id)
        .where(inner.c.parent == folder, inner.c.publication_id.is_(None), publications.c.opened > after)
    )
    for row in tx.execute(query.order_by(publications.c.opened.desc())).all():
        yield as_folder(read_publication(tx, row, tiers))


def as_folder(last: Publication) -> Publication:
    """Of a folder's `.metadata`: with the folder's path and kind; anything else as it is."""
    parent, name = paths.parent_and_name(last.path)
    is_last = name == WRITTEN_LAST and last.kind is Kind.FILE and parent != "/"
    return replace(last, path=parent, kind=Kind.FOLDER) if is_last else last


def inside(folder: str) -> ColumnElement[bool]:
    """The condition that it is live, below the folder."""
    return published_below(folder, "live", itself=False)


def measured(tx: Connection, folder: Publication, tiers: Mapping[str, TierRow]) -> Publication | None:
    """With the size of all that lies in it, and the tiers that hold all of that. None if something in it is younger than its `.metadata`:
    then it is being written again."""
    counted = select(
        func.max(publications.c.opened), func.sum(publications.c.size_bytes), func.sum(publications.c.file_count), func.count(),
        func.sum(publications.c.node_count),
    )  # fmt: skip
    youngest, size_bytes, files, count, nodes = tx.execute(counted.where(inside(folder.path))).one()
    if youngest is None or youngest > folder.opened:
        return None
    query = select(tier_commits.c.tier, func.count()).join(publications, publications.c.publication_id == tier_commits.c.publication_id)
    recorded = tx.execute(query.where(inside(folder.path)).group_by(tier_commits.c.tier)).all()
    records: dict[str, int] = {tier: number for tier, number in recorded}  # noqa: C416 - rows, not pairs
    # A record of each file in a shared tier; in a local one, of each node that ingested something of it.
    durable = tuple(t.name for t in tiers.values() if t.durable and records.get(t.name, 0) >= (count if t.shared else nodes))
    return replace(folder, size_bytes=int(size_bytes), file_count=int(files), durability=durable)
