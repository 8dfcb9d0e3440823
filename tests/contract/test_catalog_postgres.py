"""The catalog on a real PostgreSQL keeps the contract, and what is PostgreSQL's own: locks, lost connections, a server that is away."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from ckptstore.catalog import Catalog, engine
from ckptstore.catalog.model import Retention
from ckptstore.errors import CatalogUnavailable
from ckptstore.retention import LatestN, write_policies
from tests.contract.attachments_contract import AttachmentsContract
from tests.contract.catalog_contract import TIERS, CatalogContract, Saver
from tests.contract.changes_contract import ChangesContract
from tests.contract.fingerprints_contract import FingerprintsContract
from tests.contract.leaving_contract import LeavingContract
from tests.contract.moving_contract import MovingContract
from tests.contract.namespace_contract import NamespaceContract
from tests.contract.older_schemas import take_back
from tests.contract.references_contract import ReferencesContract
from tests.contract.replicas_contract import ReplicasContract
from tests.contract.retention_contract import RetentionContract
from tests.contract.snapshots_contract import SnapshotsContract
from tests.contract.storing_contract import StoringContract
from tests.contract.tagging_contract import TaggingContract
from tests.services.postgres import Postgres


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.stop()


class TestPostgresCatalog(
    CatalogContract, NamespaceContract, ReplicasContract, ReferencesContract, MovingContract, AttachmentsContract, ChangesContract,
    RetentionContract, LeavingContract, FingerprintsContract, SnapshotsContract, StoringContract, TaggingContract,
):
    @pytest.fixture
    def url(self, postgres: Postgres) -> str:
        return postgres.emptied()


#: Every column, constraint and index. A default of 0 may be written as a number, or as text that is cast.
DESCRIPTIONS = (
    "SELECT table_name, column_name, data_type, is_nullable, replace(column_default, '''0''::bigint', '0'), collation_name "
    "FROM information_schema.columns WHERE table_schema = 'public'",
    "SELECT conrelid::regclass::text, contype::text, pg_get_constraintdef(oid) FROM pg_constraint "
    "WHERE connamespace = 'public'::regnamespace",
    "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'",
)


def tables_of(url: str) -> set[tuple[object, ...]]:
    with psycopg.connect(url) as database:
        return {row for query in DESCRIPTIONS for row in database.execute(query).fetchall()}


def test_a_catalog_of_version_1_becomes_one_of_today_and_keeps_its_data(postgres: Postgres) -> None:
    url = postgres.database()
    with closing(Catalog.open(url, node="node-a")) as catalog:
        catalog.register_tiers(TIERS)
        published = Saver(catalog).save("/run/1")
    made_anew = tables_of(url)
    with psycopg.connect(url) as database:
        take_back(database.execute, 1)
    assert len(tables_of(url)) < len(made_anew)
    with closing(Catalog.open(url, node="node-a")) as migrated:
        migrated.register_tiers(TIERS)
        saver = Saver(migrated)
        assert migrated.resolve("/run/1").publication_id == published.publication_id
        assert saver.save_referring("/run/2", published).referred_bytes == 7
        saver.settle_all()
        assert migrated.resolve("/run/2").durability == ("nvme", "pfs", "object")
    assert tables_of(url) == made_anew


def test_a_catalog_of_version_9_keeps_its_policies(postgres: Postgres) -> None:
    """They were one row a folder; now a tier may have its own."""
    url = postgres.database()
    with closing(Catalog.open(url, node="node-a")) as catalog:
        catalog.register_tiers(TIERS)
        kept = catalog.set_retention(Retention("/run", write_policies([LatestN(n=2)]), safe_in="pfs", trash_s=60.0))
    with psycopg.connect(url) as database:
        take_back(database.execute, 9)
        assert database.execute("SELECT path, tier FROM retentions").fetchall() == [("/run", "pfs")]
    with closing(Catalog.open(url, node="node-a")) as migrated:
        assert migrated.retentions() == [kept]


def test_a_locked_catalog_is_unavailable_says_so_and_recovers(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_S", 0.2)
    url = postgres.database()
    with closing(Catalog.open(url, node="node-a", patience_s=0.5)) as catalog, psycopg.connect(url) as other:
        catalog.register_tiers(TIERS)
        saver = Saver(catalog)
        other.execute("LOCK TABLE attempts IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(CatalogUnavailable, match="lock timeout") as refusal:
            saver.join("/run/1")
        assert refusal.value.hint is not None
        other.rollback()
        assert saver.save("/run/1").live


def test_a_lost_connection_is_made_again(postgres: Postgres) -> None:
    url = postgres.database()
    with closing(Catalog.open(url, node="node-a")) as catalog, psycopg.connect(url, autocommit=True) as other:
        catalog.register_tiers(TIERS)
        saver = Saver(catalog)
        saver.save("/run/1")
        ended = other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ckptstore'").fetchall()
        assert ended
        assert saver.save("/run/2").live


def test_a_server_that_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(CatalogUnavailable):
        Catalog.open(f"postgresql://user@/db?host={tmp_path}", node="node-a", patience_s=0.2)


def test_nodes_that_start_together_make_one_schema(postgres: Postgres) -> None:
    url = postgres.database()

    def open_and_read(number: int) -> str:
        with closing(Catalog.open(url, node=f"node-{number}")) as catalog:
            return catalog.store_id

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(open_and_read, range(6)))) == 1
