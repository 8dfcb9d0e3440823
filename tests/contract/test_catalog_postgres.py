"""The catalog on a real PostgreSQL keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.catalog_contract import CatalogContract
from tests.services.postgres import Postgres


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.stop()


class TestPostgresCatalog(CatalogContract):
    @pytest.fixture
    def url(self, postgres: Postgres) -> str:
        return postgres.database()
