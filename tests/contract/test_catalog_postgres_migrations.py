"""A PostgreSQL catalog of each older version, with rows in every table, becomes one of this version: by all the steps or by none."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Connection, insert

from ckptstore.catalog import Catalog, migrations, schema
from ckptstore.catalog.engine import Database
from ckptstore.catalog.model import Retention
from ckptstore.errors import ConfigInvalid
from tests.contract.catalog_contract import TIERS, Saver
from tests.contract.older_schemas import TAKEN_BACK, take_back
from tests.services.postgres import Postgres

POLICIES = '["latest:2"]'
#: table → its rows, each as column → value
Rows = dict[str, list[dict[str, Any]]]

#: What a database is made of, but for the order of a table's columns: ALTER TABLE adds its own at the end. Names of keys count. A default
#: of 0 may be written as a number, or as text that is cast.
_SHAPE = {
    "columns": (
        "SELECT table_name, column_name, data_type, is_nullable, replace(column_default, '''0''::bigint', '0'), collation_name "
        "FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2"
    ),
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2",
    "constraints": (
        "SELECT conrelid::regclass::text, conname, contype, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2"
    ),
    "sequences": "SELECT sequencename, data_type::text FROM pg_sequences WHERE schemaname = 'public' ORDER BY 1",
}


@pytest.fixture(scope="module")
def made_anew(postgres: Postgres) -> dict[str, list[Any]]:
    """The shape of a catalog that was never of another version."""
    url = postgres.database()
    Catalog.open(url, node="node-a").close()
    return shape(url)


@pytest.fixture
def url(postgres: Postgres) -> str:
    """Of a catalog of this version, with rows in every table."""
    url = postgres.emptied()
    with closing(Catalog.open(url, node="node-a")) as catalog:
        catalog.register_tiers(TIERS)
        _fill(Saver(catalog))
    return url


def _fill(saver: Saver) -> None:
    """What a user would have, and one row of filling in each table that is still empty."""
    one = saver.save("/run/1", names=["a", "inner/b"])
    saver.settle_all()
    saver.save_referring("/run/2", one)
    saver.join("/run/3", token="token-of-3")
    saver.catalog.set_retention(Retention("/run", POLICIES, safe_in="pfs", trash_s=60.0))
    asked = saver.catalog.ask_for_snapshot("/run", "maintenance", for_s=3600.0)
    for rank, holds_at in enumerate((40, 70, 55)):
        saver.catalog.hold_rank(asked.request_id, "job", rank, 4, holds_at)

    def fill(tx: Connection) -> None:
        for table in schema.metadata.sorted_tables:
            if tx.execute(table.select().limit(1)).first() is None:
                tx.execute(insert(table).values({column.name: _filling(column.type.python_type) for column in table.columns}))

    saver.catalog._db.write("fill", fill)


def _filling(kind: type) -> Any:
    return {str: "filling", int: 7, float: 7.5, bool: True, bytes: b"\0filling"}[kind]


def _take_back(url: str, version: int) -> None:
    with psycopg.connect(url) as connection:
        take_back(connection.execute, version)


def shape(url: str) -> dict[str, list[Any]]:
    with psycopg.connect(url) as connection:
        return {part: connection.execute(query.encode()).fetchall() for part, query in _SHAPE.items()}


def rows_of(url: str) -> Rows:
    with psycopg.connect(url, row_factory=psycopg.rows.dict_row) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return {
            name: connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(name))).fetchall()
            for name in sorted(table["tablename"] for table in tables)
        }


def _in_order(rows: list[dict[str, Any]]) -> list[Any]:
    return sorted(sorted((name, repr(value)) for name, value in row.items()) for row in rows)


def _migrate(url: str) -> None:
    """That alone: a catalog that is opened also writes down who opened it."""
    with closing(Database(url)) as database:
        database.write("migrate", lambda tx: migrations.migrate(tx, "the catalog"))


def _version(url: str) -> int:
    return next(int(row["value"]) for row in rows_of(url)["store"] if row["key"] == "schema_version")


def _moved_by_hand(old: Rows) -> Rows:
    """The rows that a migrated catalog must have, in the columns that it had before."""
    moved = {table: [dict(row) for row in rows] for table, rows in old.items()}
    for row in moved["store"]:
        if row["key"] == "schema_version":
            row["value"] = str(schema.SCHEMA_VERSION)
    if "retentions" in moved:
        moved["tier_retentions"] = [
            {**{name: value for name, value in row.items() if name != "tier"}, "tier": "", "safe_in": row["tier"]}
            for row in moved.pop("retentions")
        ]
    if "snapshot_ranks" in moved and "snapshot_jobs" not in moved:
        spoken = {row["request_id"] for row in moved["snapshot_ranks"]}
        moved["snapshot_jobs"] = [{"request_id": asked, "token": "job", "world_size": 4, "ranks": 3, "holds_at": 70} for asked in spoken]
    return moved


OLDER = pytest.mark.parametrize("version", range(1, schema.SCHEMA_VERSION))


def test_every_step_from_the_first_version_on_is_known_and_can_be_taken_back() -> None:
    assert [*migrations.STEPS] == [*range(1, schema.SCHEMA_VERSION)]
    assert sorted(TAKEN_BACK) == [*range(2, schema.SCHEMA_VERSION + 1)]


@OLDER
def test_a_migration_makes_the_schema_of_a_new_catalog_and_keeps_every_row(
    url: str, made_anew: dict[str, list[Any]], version: int
) -> None:
    _take_back(url, version)
    assert shape(url) != made_anew
    old = rows_of(url)
    assert all(old.values()), "no table is without rows"
    _migrate(url)
    migrated = shape(url)
    for part, described in made_anew.items():
        assert migrated[part] == described, part
    new, expected = rows_of(url), _moved_by_hand(old)
    for table, rows in new.items():
        kept = [*expected[table][0]] if table in expected else []
        assert _in_order([{name: row[name] for name in kept} for row in rows]) == _in_order(expected.get(table, [])), table
        added = {value for row in rows for name, value in row.items() if name not in kept}
        assert added <= {None, 0}, f"what is new in {table} is empty"


@OLDER
def test_a_migrated_catalog_is_used_as_it_was(url: str, version: int) -> None:
    _take_back(url, version)
    with closing(Catalog.open(url, node="node-a")) as migrated:
        migrated.register_tiers(TIERS)
        one, again = migrated.resolve("/run/1"), Saver(migrated)
        agreed = [migrated.hold_rank(asked.request_id, "job", 3, 4, 60).at_step for asked in migrated.open_snapshot_requests()]
        assert agreed == ([70] if version >= 9 else [])
        assert one.durability == ("nvme", "pfs", "object")
        assert again.save_referring("/run/4", one).referred_bytes == 7
        again.settle_all()
        assert migrated.resolve("/run/4").durability == ("nvme", "pfs", "object")
        kept = [(rule.path, rule.policies, rule.tier, rule.safe_in) for rule in migrated.retentions("/run")]
        assert kept == ([("/run", POLICIES, "", "pfs")] if version >= 6 else [])
    assert _version(url) == schema.SCHEMA_VERSION


def test_a_migration_that_fails_at_any_step_leaves_the_version_the_schema_and_the_rows(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _take_back(url, 1)
    before = shape(url), rows_of(url)

    def failing(step: Callable[[Connection], None]) -> Callable[[Connection], None]:
        def half_way(tx: Connection) -> None:
            step(tx)
            raise RuntimeError("power cut")

        return half_way

    for version, step in migrations.STEPS.items():
        with monkeypatch.context() as patched:
            patched.setattr(migrations, "STEPS", migrations.STEPS | {version: failing(step)})
            with pytest.raises(RuntimeError, match="power cut"):
                Catalog.open(url, node="node-a")
        assert (shape(url), rows_of(url)) == before, version
    _migrate(url)
    assert _version(url) == schema.SCHEMA_VERSION


def test_nodes_that_start_together_take_an_old_catalog_over_once(
    url: str, made_anew: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _take_back(url, 1)
    taken: list[int] = []

    def noted(version: int, step: Callable[[Connection], None]) -> Callable[[Connection], None]:
        return lambda tx: (taken.append(version), step(tx))[1]

    monkeypatch.setattr(migrations, "STEPS", {version: noted(version, step) for version, step in migrations.STEPS.items()})

    def open_and_read(number: int) -> str:
        with closing(Catalog.open(url, node=f"node-{number}")) as catalog:
            return catalog.resolve("/run/1").publication_id

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(open_and_read, range(6)))) == 1
    assert taken == [*range(1, schema.SCHEMA_VERSION)]
    assert shape(url) == made_anew


def test_a_newer_schema_is_refused_by_name_and_left_as_it_is(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE store SET value = '99' WHERE key = 'schema_version'")
    before = shape(url), rows_of(url)
    with pytest.raises(ConfigInvalid, match="schema version 99"):
        Catalog.open(url, node="node-a")
    assert (shape(url), rows_of(url)) == before
