"""Catalogs as older versions left them: made of one of today by taking away what each version since has added."""

from __future__ import annotations

from collections.abc import Callable

from ckptstore.catalog import schema

#: version → what it added, taken away again
TAKEN_BACK = {
    2: ("DROP TABLE object_references", "ALTER TABLE publications DROP COLUMN referred_bytes"),
    3: ("ALTER TABLE replicas DROP COLUMN stored_bytes",),
    4: ("DROP TABLE shard_documents", "DROP TABLE rank_documents"),
    5: ("DROP TABLE attachments",),
    6: ("DROP TABLE retentions", "DROP TABLE holds"),
    7: ("ALTER TABLE objects DROP COLUMN sha256", "ALTER TABLE objects DROP COLUMN git_sha1"),
    8: ("DROP INDEX publications_by_sequence",),
    9: ("DROP TABLE snapshot_requests", "DROP TABLE snapshot_ranks"),
    11: ("ALTER TABLE publications DROP COLUMN published_sequence",),
    12: ("DROP TABLE snapshot_jobs",),
    13: ("DROP INDEX entries_folders",),
    10: (
        "CREATE TABLE retentions (path TEXT NOT NULL, policies TEXT NOT NULL, tier TEXT NOT NULL, trash_s DOUBLE PRECISION NOT NULL, "
        "set_at_s DOUBLE PRECISION NOT NULL, PRIMARY KEY (path))",
        "INSERT INTO retentions SELECT path, policies, safe_in, trash_s, set_at_s FROM tier_retentions WHERE tier = ''",
        "DROP TABLE tier_retentions",
        "DROP TABLE unkept",
    ),
}


def take_back(execute: Callable[[str], object], version: int) -> None:
    """Make the database one of an older version; `execute` runs one statement, on SQLite or PostgreSQL."""
    for newer in range(schema.SCHEMA_VERSION, version, -1):
        for statement in TAKEN_BACK[newer]:
            execute(statement)
    execute(f"UPDATE store SET value = '{version}' WHERE key = 'schema_version'")
