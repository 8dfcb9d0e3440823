"""How does a row of the database become the value that callers see?

Pure reading: nothing here changes a row. A page of publications costs two statements, however many it has: theirs, and one for the
tiers in which they are durable.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, select

from ckptstore.catalog.core import chunks
from ckptstore.catalog.model import AttemptState, AttemptView, Kind, Publication, StoredFile, TierRow
from ckptstore.catalog.schema import attempts, now_s, objects, publications, tier_commits

#: What AttemptView is made of, `now` being the database's clock.
ATTEMPT_COLUMNS: list[ColumnElement[Any]] = [*attempts.c, now_s().label("now")]
#: What StoredFile is made of, without the long column.
FILE_COLUMNS: list[ColumnElement[Any]] = [
    objects.c.object_id, objects.c.name, objects.c.rank, objects.c.key, objects.c.node, objects.c.size_bytes, objects.c.root
]  # fmt: skip


def attempt_view(row: Row[Any]) -> AttemptView:
    state = AttemptState(row.state)
    return AttemptView(
        attempt_id=row.attempt_id,
        path=row.path,
        kind=Kind(row.kind),
        state=state,
        reason=row.reason,
        world_size=row.world_size,
        step=row.step,
        metadata=row.metadata,
        replace=row.replaces,
        joined=row.joined,
        snapshots=row.snapshots,
        stored=row.stored,
        publication_id=row.attempt_id if state is AttemptState.PUBLISHED else None,
        opened_at_s=row.opened_at_s,
        idle_s=max(0.0, row.now - row.moved_at_s),
        opened=row.opened,
    )


def file_columns(with_blocks: bool) -> list[ColumnElement[Any]]:
    return [*FILE_COLUMNS, objects.c.blocks] if with_blocks else FILE_COLUMNS


def stored_file(row: Row[*tuple[Any, ...]]) -> StoredFile:
    """A file whose bytes are not stored yet has size 0 and the root ""."""
    blocks: bytes | None = row._mapping.get("blocks")
    return StoredFile(row.object_id, row.name, row.rank, row.key, row.node, row.size_bytes or 0, row.root or "", bytes(blocks or b""))


def read_publications(tx: Connection, rows: Sequence[Row[Any]], tiers: Mapping[str, TierRow]) -> list[Publication]:
    """The rows of `publications` as values, in the same order."""
    durable = durabilities(tx, {row.publication_id: row.node_count for row in rows}, tiers)
    return [_publication(row, durable[row.publication_id]) for row in rows]


def read_publication(tx: Connection, row: Row[Any], tiers: Mapping[str, TierRow]) -> Publication:
    return read_publications(tx, [row], tiers)[0]


def publication_row(tx: Connection, publication_id: str, *, locked: bool = False) -> Row[Any] | None:
    query = select(publications).where(publications.c.publication_id == publication_id)
    return tx.execute(query.with_for_update() if locked else query).first()


def durabilities(tx: Connection, node_counts: Mapping[str, int], tiers: Mapping[str, TierRow]) -> dict[str, tuple[str, ...]]:
    """For each publication the durable tiers that hold all of it: one record in a shared tier, one of each owning node in a local one."""
    records: dict[tuple[str, str], int] = defaultdict(int)
    for ids in chunks(node_counts):
        counted = (
            select(tier_commits.c.publication_id, tier_commits.c.tier, func.count())
            .where(tier_commits.c.publication_id.in_(ids))
            .group_by(tier_commits.c.publication_id, tier_commits.c.tier)
        )
        for publication_id, tier, count in tx.execute(counted):
            records[publication_id, tier] = count
    durable = [tier for tier in tiers.values() if tier.durable]
    return {
        publication_id: tuple(tier.name for tier in durable if records[publication_id, tier.name] >= (1 if tier.shared else node_count))
        for publication_id, node_count in node_counts.items()
    }


def deepest(durability: Iterable[str], tiers: Mapping[str, TierRow]) -> int:
    """The position of the deepest tier named; -1 for none."""
    return max((tiers[name].position for name in durability), default=-1)


def _publication(row: Row[Any], durability: tuple[str, ...]) -> Publication:
    return Publication(
        publication_id=row.publication_id,
        path=row.path,
        kind=Kind(row.kind),
        sequence=row.sequence,
        opened=row.opened,
        world_size=row.world_size,
        step=row.step,
        metadata=row.metadata,
        size_bytes=row.size_bytes,
        file_count=row.file_count,
        opened_at_s=row.opened_at_s,
        published_at_s=row.published_at_s,
        live=row.state == "live",
        durability=durability,
        referred_bytes=row.referred_bytes,
        published_sequence=row.sequence if row.published_sequence is None else row.published_sequence,
    )
