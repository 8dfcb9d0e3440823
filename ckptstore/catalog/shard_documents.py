"""What do the ranks of an attempt say of the tensors that are spread over them? Two documents a rank, kept until the attempt has ended.

They come in with the ranks' files, on any node, and whoever publishes reads them all. Ranks whose documents are equal share a row, so
that a plan of megabytes that a thousand ranks have is stored once. Those of attempts that have ended go with the next `expire`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, delete, exists, select, update

from ckptstore.catalog.core import Core, insert_unless_there
from ckptstore.catalog.model import AttemptState
from ckptstore.catalog.schema import attempts, rank_documents, shard_documents
from ckptstore.shard_merging import RankDocuments

#: Of so many different ranks' leaves a rank that comes later is told: what it looks at must not grow with the ranks.
EARLIER_LOOKED_AT = 16


@dataclass(frozen=True)
class Document:
    """`body` may be compressed: the catalog only keeps it."""

    digest: str
    body: bytes


class ShardDocuments(Core):
    def declare_shards(self, attempt_id: str, rank: int, plan: Document, leaves: Document) -> list[bytes]:
        """Note what a rank says. The bodies of leaves that other ranks said before it, of `EARLIER_LOOKED_AT` different ones at most.

        None where the rank itself has said something before, as when this is repeated: of two ranks that say the same, only one ever
        finds the other's.
        """
        mine = (rank_documents.c.attempt_id == attempt_id, rank_documents.c.rank == rank)
        theirs = select(rank_documents.c.leaves).where(rank_documents.c.attempt_id == attempt_id, rank_documents.c.rank != rank).distinct()
        bodies = select(shard_documents.c.body).where(shard_documents.c.attempt_id == attempt_id)
        bodies = bodies.where(shard_documents.c.digest.in_(theirs)).order_by(shard_documents.c.digest).limit(EARLIER_LOOKED_AT)

        def work(tx: Connection) -> list[bytes]:
            for document in (plan, leaves):
                row = {"attempt_id": attempt_id, "digest": document.digest, "body": document.body}
                tx.execute(insert_unless_there(tx, shard_documents).values(**row))
            said = {"plan": plan.digest, "leaves": leaves.digest}
            row_of_rank = {"attempt_id": attempt_id, "rank": rank} | said
            if tx.execute(insert_unless_there(tx, rank_documents).values(**row_of_rank)).rowcount == 0:
                tx.execute(update(rank_documents).where(*mine).values(**said))
                return []
            return list(tx.execute(bodies).scalars())

        return self._db.write("declare shards", work, attempt_id)

    def rank_documents(self, attempt_id: str) -> list[RankDocuments]:
        """Which documents the ranks have, by rank; empty where the state is not sharded."""
        columns = (rank_documents.c.rank, rank_documents.c.plan, rank_documents.c.leaves)
        query = select(*columns).where(rank_documents.c.attempt_id == attempt_id).order_by(rank_documents.c.rank)
        rows = self._db.read("look up shards", lambda tx: tx.execute(query).all(), attempt_id)
        return [RankDocuments(row.rank, row.plan, row.leaves) for row in rows]

    def shard_documents(self, attempt_id: str) -> Mapping[str, bytes]:
        """Their bodies, by digest."""
        query = select(shard_documents.c.digest, shard_documents.c.body).where(shard_documents.c.attempt_id == attempt_id)
        return {row.digest: row.body for row in self._db.read("look up shards", lambda tx: tx.execute(query).all(), attempt_id)}


def forget_ended(tx: Connection) -> None:
    """Drop the documents of attempts that are not under way any more."""
    for table in (rank_documents, shard_documents):
        under_way = exists().where(
            attempts.c.attempt_id == table.c.attempt_id, attempts.c.state.in_((AttemptState.OPEN, AttemptState.COMPLETE))
        )
        tx.execute(delete(table).where(~under_way))
