"""How does an older database become one of this version, and what if it is newer?

A new database gets the whole schema at once. An older one is taken from version to version by the functions in `STEPS`, all in one
transaction (DDL is transactional on SQLite and PostgreSQL), so that a crash or a failing step leaves the old version. A newer schema
is refused by name: an older ckptstore must not guess at it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

from sqlalchemy import Connection, insert, inspect, select, text, update

from ckptstore.catalog.schema import SCHEMA_VERSION, counters, metadata, store
from ckptstore.errors import ConfigInvalid


def _add_references(tx: Connection) -> None:
    """2: checkpoints that refer to the objects of earlier ones."""
    name = 'TEXT COLLATE "C"' if tx.dialect.name == "postgresql" else "TEXT"
    tx.execute(
        text(
            f"CREATE TABLE object_references (attempt_id {name} NOT NULL, object_id {name} NOT NULL, rank BIGINT NOT NULL, "
            "size_bytes BIGINT NOT NULL, PRIMARY KEY (attempt_id, object_id))"
        )
    )
    tx.execute(text("CREATE INDEX references_by_object ON object_references (object_id, attempt_id)"))
    tx.execute(text("ALTER TABLE publications ADD COLUMN referred_bytes BIGINT DEFAULT 0 NOT NULL"))


def _add_stored_bytes(tx: Connection) -> None:
    """3: what a compressed replica takes in its tier."""
    tx.execute(text("ALTER TABLE replicas ADD COLUMN stored_bytes BIGINT"))


def _add_shard_documents(tx: Connection) -> None:
    """4: what ranks say of the tensors that are spread over them, until their attempt ends."""
    name, blob = ('TEXT COLLATE "C"', "BYTEA") if tx.dialect.name == "postgresql" else ("TEXT", "BLOB")
    tx.execute(
        text(
            f"CREATE TABLE shard_documents (attempt_id {name} NOT NULL, digest {name} NOT NULL, body {blob} NOT NULL, "
            "PRIMARY KEY (attempt_id, digest))"
        )
    )
    tx.execute(
        text(
            f"CREATE TABLE rank_documents (attempt_id {name} NOT NULL, rank BIGINT NOT NULL, plan {name} NOT NULL, leaves {name} NOT NULL, "
            "PRIMARY KEY (attempt_id, rank))"
        )
    )


def _add_attachments(tx: Connection) -> None:
    """5: storage of others under the namespace."""
    name = 'TEXT COLLATE "C"' if tx.dialect.name == "postgresql" else "TEXT"
    moment = "DOUBLE PRECISION" if tx.dialect.name == "postgresql" else "DOUBLE"
    tx.execute(
        text(
            f"CREATE TABLE attachments (path {name} NOT NULL, url {name} NOT NULL, read_only BOOLEAN NOT NULL, "
            f"refresh_s {moment} NOT NULL, credentials {name}, options {name} NOT NULL, attached_at_s {moment} NOT NULL, "
            "PRIMARY KEY (path))"
        )
    )


def _add_retention(tx: Connection) -> None:
    """6: what is kept of the checkpoints in a folder, and what nobody may remove."""
    name = 'TEXT COLLATE "C"' if tx.dialect.name == "postgresql" else "TEXT"
    moment = "DOUBLE PRECISION" if tx.dialect.name == "postgresql" else "DOUBLE"
    tx.execute(
        text(
            f"CREATE TABLE retentions (path {name} NOT NULL, policies {name} NOT NULL, tier {name} NOT NULL, trash_s {moment} NOT NULL, "
            f"set_at_s {moment} NOT NULL, PRIMARY KEY (path))"
        )
    )
    tx.execute(
        text(
            f"CREATE TABLE holds (publication_id {name} NOT NULL, why {name} NOT NULL, held_at_s {moment} NOT NULL, "
            "PRIMARY KEY (publication_id))"
        )
    )


def _add_fingerprints(tx: Connection) -> None:
    """7: the names that others give to an object's bytes."""
    name = 'TEXT COLLATE "C"' if tx.dialect.name == "postgresql" else "TEXT"
    for column in ("sha256", "git_sha1"):
        tx.execute(text(f"ALTER TABLE objects ADD COLUMN {column} {name}"))


def _add_order_of_publishing(tx: Connection) -> None:
    """8: what was published after something else is found without looking at everything."""
    tx.execute(text("CREATE INDEX publications_by_sequence ON publications (sequence)"))


def _add_snapshot_requests(tx: Connection) -> None:
    """9: checkpoints that somebody asks a running job for."""
    name = 'TEXT COLLATE "C"' if tx.dialect.name == "postgresql" else "TEXT"
    moment = "DOUBLE PRECISION" if tx.dialect.name == "postgresql" else "DOUBLE"
    tx.execute(
        text(
            f"CREATE TABLE snapshot_requests (request_id {name} NOT NULL, number BIGINT NOT NULL, path {name} NOT NULL, "
            f"why {name} NOT NULL, token {name} NOT NULL, asked_at_s {moment} NOT NULL, until_s {moment} NOT NULL, "
            f"answered_by {name}, PRIMARY KEY (request_id))"
        )
    )
    tx.execute(text("CREATE INDEX snapshot_requests_by_path ON snapshot_requests (path)"))
    tx.execute(
        text(
            f"CREATE TABLE snapshot_ranks (request_id {name} NOT NULL, token {name} NOT NULL, rank BIGINT NOT NULL, "
            "world_size BIGINT NOT NULL, holds_at BIGINT NOT NULL, PRIMARY KEY (request_id, token, rank))"
        )
    )


def _add_retention_by_tier(tx: Connection) -> None:
    """10: policies of single tiers, and which tiers a checkpoint is kept from because of them."""
    name = 'TEXT COLLATE "C"' if tx.dialect.name == "postgresql" else "TEXT"
    moment = "DOUBLE PRECISION" if tx.dialect.name == "postgresql" else "DOUBLE"
    tx.execute(
        text(
            f"CREATE TABLE tier_retentions (path {name} NOT NULL, tier {name} NOT NULL, policies {name} NOT NULL, safe_in {name} NOT NULL, "
            f"trash_s {moment} NOT NULL, set_at_s {moment} NOT NULL, PRIMARY KEY (path, tier))"
        )
    )
    tx.execute(text("INSERT INTO tier_retentions SELECT path, '', policies, tier, trash_s, set_at_s FROM retentions"))
    tx.execute(text("DROP TABLE retentions"))
    tx.execute(text(f"CREATE TABLE unkept (publication_id {name} NOT NULL, tier {name} NOT NULL, PRIMARY KEY (publication_id, tier))"))


def _add_published_sequence(tx: Connection) -> None:
    """11: metadata may change after the publish."""
    tx.execute(text("ALTER TABLE publications ADD COLUMN published_sequence BIGINT"))


def _add_snapshot_jobs(tx: Connection) -> None:
    """12: what a job's ranks have said of a request is summed up as it is said."""
    name = 'TEXT COLLATE "C"' if tx.dialect.name == "postgresql" else "TEXT"
    tx.execute(
        text(
            f"CREATE TABLE snapshot_jobs (request_id {name} NOT NULL, token {name} NOT NULL, world_size BIGINT NOT NULL, "
            "ranks BIGINT NOT NULL, holds_at BIGINT NOT NULL, PRIMARY KEY (request_id, token))"
        )
    )
    summed = "SELECT request_id, token, MAX(world_size), COUNT(*), MAX(holds_at) FROM snapshot_ranks GROUP BY request_id, token"
    tx.execute(text(f"INSERT INTO snapshot_jobs {summed}"))


def _add_index_of_folders(tx: Connection) -> None:
    """13: a folder's folders are found without reading all that is in it."""
    tx.execute(text("CREATE INDEX entries_folders ON entries (parent) WHERE publication_id IS NULL"))


#: version → what makes the next version of it. A step spells out its DDL: it must not change when `schema` does.
STEPS: dict[int, Callable[[Connection], None]] = {
    1: _add_references,
    2: _add_stored_bytes,
    3: _add_shard_documents,
    4: _add_attachments,
    5: _add_retention,
    6: _add_fingerprints,
    7: _add_order_of_publishing,
    8: _add_snapshot_requests,
    9: _add_retention_by_tier,
    10: _add_published_sequence,
    11: _add_snapshot_jobs,
    12: _add_index_of_folders,
}

#: Any number that no other program uses: nodes that start together migrate one after the other.
_ADVISORY_LOCK = 0x636B7074


def migrate(connection: Connection, name: str) -> None:
    """Create the schema, or bring it to SCHEMA_VERSION. ConfigInvalid if it is newer than this program."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _ADVISORY_LOCK})
    if not inspect(connection).has_table(store.name):
        _create(connection)
        return
    version = int(connection.execute(select(store.c.value).where(store.c.key == "schema_version")).scalar_one())
    if version > SCHEMA_VERSION:
        raise ConfigInvalid(
            f"the catalog has schema version {version}; this ckptstore knows versions up to {SCHEMA_VERSION}",
            operation="open catalog",
            subject=name,
            hint="use the newer ckptstore that wrote it",
        )
    while version < SCHEMA_VERSION:
        STEPS[version](connection)
        version += 1
        connection.execute(update(store).where(store.c.key == "schema_version").values(value=str(version)))


def _create(connection: Connection) -> None:
    metadata.create_all(connection)
    connection.execute(
        insert(store), [{"key": "schema_version", "value": str(SCHEMA_VERSION)}, {"key": "store_id", "value": str(uuid.uuid4())}]
    )
    connection.execute(insert(counters), [{"name": "opened", "value": 0}, {"name": "sequence", "value": 0}])
