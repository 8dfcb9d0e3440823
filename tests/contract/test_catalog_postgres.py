"""The catalog on a real PostgreSQL keeps the contract, and what is PostgreSQL's own: locks, lost connections, a server that is away."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from ckptstore.catalog import Catalog, engine
from ckptstore.errors import CatalogUnavailable
from tests.contract.attachments_contract import AttachmentsContract
from tests.contract.catalog_contract import TIERS, CatalogContract, Saver
from tests.contract.changes_contract import ChangesContract
from tests.contract.fingerprints_contract import FingerprintsContract
from tests.contract.leaving_contract import LeavingContract
from tests.contract.moving_contract import MovingContract
from tests.contract.namespace_contract import NamespaceContract
from tests.contract.references_contract import ReferencesContract
from tests.contract.replicas_contract import ReplicasContract
from tests.contract.retention_contract import RetentionContract
from tests.contract.snapshots_contract import SnapshotsContract
from tests.contract.storing_contract import StoringContract
from tests.contract.tagging_contract import TaggingContract
from tests.services.postgres import Postgres


class TestPostgresCatalog(
    CatalogContract, NamespaceContract, ReplicasContract, ReferencesContract, MovingContract, AttachmentsContract, ChangesContract,
    RetentionContract, LeavingContract, FingerprintsContract, SnapshotsContract, StoringContract, TaggingContract,
):
    @pytest.fixture
    def url(self, postgres: Postgres) -> str:
        return postgres.emptied()


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
