"""Which tables does the catalog have, and which index serves which question?

One schema for SQLite and PostgreSQL. Text that is compared or sorted uses byte order on both (collation "C" on PostgreSQL; SQLite's
default), so that a listing has one order everywhere. A publication has the id of the attempt that it came from, and its files are the
attempt's objects: publishing moves no rows.

`place` is where something lies within a tier: "" for a shared tier, the node's id for a node-local one. `owner` is the node that has
to do a piece of work; for work in a shared tier another node takes over when the owner has not been seen for a while.

Every growing table is reached only through its primary key or an index below; the test of query plans holds that.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

#: The version of the schema below; `migrations` brings older ones up to it.
SCHEMA_VERSION = 13

metadata = MetaData()
_Text = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
#: On SQLite only INTEGER PRIMARY KEY counts by itself.
_Identity = BigInteger().with_variant(Integer(), "sqlite")


class now_s(FunctionElement[float]):
    """The database's clock, in seconds since the epoch: the one clock that all nodes share."""

    type = Double()
    inherit_cache = True


@compiles(now_s, "sqlite")
def _now_sqlite(element: now_s, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now_s, "postgresql")
def _now_postgresql(element: now_s, compiler: Any, **options: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


def _text(name: str, **options: Any) -> Column[str]:
    return Column(name, _Text, nullable=options.pop("nullable", False), **options)


def _whole(name: str, **options: Any) -> Column[int]:
    return Column(name, BigInteger, nullable=options.pop("nullable", False), **options)


def _time(name: str) -> Column[float]:
    return Column(name, Double, nullable=False)


#: What is true of the whole store: schema_version, store_id, rebuilding.
store = Table("store", metadata, _text("key", primary_key=True), _text("value"))

#: `opened` and `sequence`. Taking the next `sequence` also is the lock under which the namespace changes.
counters = Table("counters", metadata, _text("name", primary_key=True), _whole("value"))

nodes = Table("nodes", metadata, _text("node", primary_key=True), _text("name"), _time("seen_s"), Index("nodes_seen", "seen_s"))

#: Each node's view of its tiers.
tiers = Table(
    "tiers",
    metadata,
    _text("node"),
    _text("name"),
    Column("position", Integer, nullable=False),
    Column("shared", Boolean, nullable=False),
    Column("durable", Boolean, nullable=False),
    Column("active", Boolean, nullable=False),
    PrimaryKeyConstraint("node", "name"),
)

attempts = Table(
    "attempts",
    metadata,
    _text("attempt_id", primary_key=True),
    _text("path"),
    _text("token"),
    _whole("ordinal"),
    _text("kind"),
    _text("state"),
    _text("reason", nullable=True),
    Column("replaces", Boolean, nullable=False),
    _whole("world_size"),
    _whole("step", nullable=True),
    _text("metadata"),
    _whole("joined"),
    _whole("snapshots"),
    _whole("stored"),
    _whole("opened"),
    _time("opened_at_s"),
    _time("moved_at_s"),  # the last progress; of an ended attempt, its end
    UniqueConstraint("path", "token", "ordinal"),
    Index("attempts_by_state", "state", "moved_at_s"),
)

#: The ranks of attempts that have not ended. They go when the attempt ends; the counts in its row stay.
ranks = Table(
    "ranks",
    metadata,
    _text("attempt_id"),
    _whole("rank"),
    _text("node"),
    _text("session"),
    _text("state"),
    PrimaryKeyConstraint("attempt_id", "rank"),
    Index("ranks_by_node", "node", "state"),
    Index("ranks_by_session", "session", "state"),
)

#: `name` is relative to the publication; `folder` and `leaf` are its two halves. `blocks` is last: it is long, and seldom wanted.
objects = Table(
    "objects",
    metadata,
    _text("object_id", primary_key=True),
    _text("attempt_id"),
    _whole("rank"),
    _text("name"),
    _text("folder"),
    _text("leaf"),
    _text("key"),
    _text("node"),
    _whole("size_bytes", nullable=True),
    _text("root", nullable=True),  # null until the bytes are stored
    _text("sha256", nullable=True),  # of the content, like the next; see `fingerprints`
    _text("git_sha1", nullable=True),
    Column("blocks", LargeBinary, nullable=True),
    UniqueConstraint("attempt_id", "name"),
    Index("objects_by_rank", "attempt_id", "rank", "name"),
    Index("objects_by_folder", "attempt_id", "folder", "leaf"),
)

#: Objects of earlier checkpoints that hold tensors of an attempt, or of the publication that it became. `size_bytes` is what it uses of
#: them. The row of an attempt that has not ended is the pin that keeps the object; see `references`.
references = Table(
    "object_references",
    metadata,
    _text("attempt_id"),
    _text("object_id"),
    _whole("rank"),
    _whole("size_bytes"),
    PrimaryKeyConstraint("attempt_id", "object_id"),
    Index("references_by_object", "object_id", "attempt_id"),
)

#: What the ranks of an attempt say of the tensors that are spread over them (`ckptstore.shards`), until it ends. Ranks share documents.
shard_documents = Table(
    "shard_documents",
    metadata,
    _text("attempt_id"),
    _text("digest"),
    Column("body", LargeBinary, nullable=False),
    PrimaryKeyConstraint("attempt_id", "digest"),
)
rank_documents = Table(
    "rank_documents",
    metadata,
    _text("attempt_id"),
    _whole("rank"),
    _text("plan"),
    _text("leaves"),
    PrimaryKeyConstraint("attempt_id", "rank"),
)

#: Folders inside a publication, so that a listing shows one level.
inner_folders = Table(
    "inner_folders", metadata, _text("attempt_id"), _text("folder"), _text("leaf"), PrimaryKeyConstraint("attempt_id", "folder", "leaf")
)

publications = Table(
    "publications",
    metadata,
    _text("publication_id", primary_key=True),
    _text("path"),
    _text("parent"),
    _text("kind"),
    _text("state"),  # live → superseded → deleted, or live → deleted; then gone, or remains while others refer to its objects
    _whole("sequence"),
    _whole("opened"),
    _whole("world_size"),
    _whole("step", nullable=True),
    _text("metadata"),
    _whole("size_bytes"),  # of its own objects
    _whole("file_count"),
    _whole("node_count"),  # nodes that ingested files of it: so many records make a node-local tier durable
    _time("opened_at_s"),
    _time("published_at_s"),
    Column("ended_at_s", Double, nullable=True),
    _whole("referred_bytes", server_default="0"),  # of tensors in the objects of other publications
    _whole("published_sequence", nullable=True),  # what `sequence` was before metadata was changed; null: it never was since
    Index("publications_by_path", "path", "state"),
    Index("publications_latest", "parent", "state", "kind", "opened"),
    Index("publications_by_state", "state", "publication_id"),
    Index("publications_by_sequence", "sequence"),
)

#: The namespace: one row for each publication that is visible and each folder above one.
entries = Table(
    "entries",
    metadata,
    _text("path", primary_key=True),
    _text("parent"),
    _text("name"),
    _text("publication_id", nullable=True),
    UniqueConstraint("parent", "name"),
)
#: The folders among a folder's entries: few where thousands of checkpoints are.
_IS_FOLDER = entries.c.publication_id.is_(None)
Index("entries_folders", entries.c.parent, sqlite_where=_IS_FOLDER, postgresql_where=_IS_FOLDER)

#: Storage of others that is shown below a path. An attached path has a row in `entries`, too, as a folder.
attachments = Table(
    "attachments",
    metadata,
    _text("path", primary_key=True),
    _text("url"),
    Column("read_only", Boolean, nullable=False),
    Column("refresh_s", Double, nullable=False),
    _text("credentials", nullable=True),  # the name of a profile, never a secret
    _text("options"),
    _time("attached_at_s"),
)

#: What is kept of the checkpoints in a folder, and since when they are judged by it.
tier_retentions = Table(
    "tier_retentions",
    metadata,
    _text("path"),
    _text("tier"),  # which these policies are about; "": all that have none of their own
    _text("policies"),  # JSON: see ckptstore.retention
    _text("safe_in"),  # which tier must hold a newer checkpoint before an older one goes; "": see ckptstore.tier_retention
    _time("trash_s"),
    _time("set_at_s"),
    PrimaryKeyConstraint("path", "tier"),
)

#: Tiers that a publication was kept from, or has left, since no policy wants it there.
unkept = Table("unkept", metadata, _text("publication_id"), _text("tier"), PrimaryKeyConstraint("publication_id", "tier"))

#: Publications that nobody may remove until they are released.
holds = Table(
    "holds",
    metadata,
    _text("publication_id", primary_key=True),
    _text("why"),
    _time("held_at_s"),
)

#: Who asked a running job for a checkpoint; and how far each rank that has heard of it goes without knowing more.
snapshot_requests = Table(
    "snapshot_requests",
    metadata,
    _text("request_id", primary_key=True),
    _whole("number"),
    _text("path"),
    _text("why"),
    _text("token"),  # of the one job that it is for; "" is whoever saves there
    _time("asked_at_s"),
    _time("until_s"),
    _text("answered_by", nullable=True),
    Index("snapshot_requests_by_path", "path"),
)
snapshot_ranks = Table(
    "snapshot_ranks",
    metadata,
    _text("request_id"),
    _text("token"),
    _whole("rank"),
    _whole("world_size"),
    _whole("holds_at"),
    PrimaryKeyConstraint("request_id", "token", "rank"),
)
#: What the ranks of one job have said in all, so that no rank has to look at all the others' rows.
snapshot_jobs = Table(
    "snapshot_jobs",
    metadata,
    _text("request_id"),
    _text("token"),
    _whole("world_size"),
    _whole("ranks"),  # that have spoken
    _whole("holds_at"),  # the greatest
    PrimaryKeyConstraint("request_id", "token"),
)

replicas = Table(
    "replicas",
    metadata,
    _text("object_id"),
    _text("tier"),
    _text("place"),
    _time("verified_at_s"),
    _time("used_at_s"),
    Column("damaged", Boolean, nullable=False),
    _whole("stored_bytes", nullable=True),
    PrimaryKeyConstraint("object_id", "tier", "place"),
    Index("replicas_by_use", "tier", "place", "used_at_s"),
    Index("replicas_by_tier", "tier", "place", "object_id"),
)

drains = Table(
    "drains",
    metadata,
    _text("object_id"),
    _text("tier"),
    _text("place"),
    _text("owner"),
    _text("publication_id"),
    _whole("opened"),
    _whole("sequence"),
    _whole("size_bytes"),
    _time("queued_at_s"),
    _time("due_s"),
    _whole("tries"),
    _text("error", nullable=True),
    PrimaryKeyConstraint("object_id", "tier", "place"),
    Index("drains_in_order", "tier", "owner", "opened", "object_id"),
    Index("drains_by_publication", "publication_id", "tier", "place"),
    # Covers what `backlog` sums, so that it reads the index alone.
    Index("drains_backlog", "tier", "owner", "queued_at_s", "size_bytes"),
)
Index("drains_failed", drains.c.tier, drains.c.owner, drains.c.due_s, sqlite_where=drains.c.tries > 0, postgresql_where=drains.c.tries > 0)

#: Publications that are whole in a tier and lack their commit record there.
owed_records = Table(
    "owed_records",
    metadata,
    _text("publication_id"),
    _text("tier"),
    _text("place"),
    _text("owner"),
    _whole("opened"),
    PrimaryKeyConstraint("publication_id", "tier", "place"),
    Index("owed_records_in_order", "tier", "owner", "opened"),
)

#: Commit records that are durable in a tier, over objects that are all there.
tier_commits = Table(
    "tier_commits",
    metadata,
    _text("publication_id"),
    _text("tier"),
    _text("place"),
    _time("written_at_s"),
    PrimaryKeyConstraint("publication_id", "tier", "place"),
)

#: Tombstones that lie in tiers, until every tier has acknowledged the deletion.
tombstones = Table(
    "tombstones", metadata, _text("publication_id"), _text("tier"), _text("place"), PrimaryKeyConstraint("publication_id", "tier", "place")
)

#: `due_s` of a chore that is `graced` is the time of the deletion: it is due a grace period later.
chores = Table(
    "chores",
    metadata,
    Column("chore_id", _Identity, primary_key=True, autoincrement=True),
    _text("publication_id"),  # or the attempt's id
    _text("act"),
    _text("tier"),
    _text("place"),
    _text("owner"),
    _text("object_id", nullable=True),
    Column("graced", Boolean, nullable=False),
    _time("due_s"),
    _whole("tries"),
    _text("error", nullable=True),
    Index("chores_due", "tier", "owner", "graced", "due_s"),
    Index("chores_by_publication", "publication_id", "tier", "place"),
    Index("chores_by_object", "object_id", "tier", "place"),
    sqlite_autoincrement=True,
)
