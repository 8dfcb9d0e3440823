"""The catalog on SQLite keeps the contract, and what is SQLite's own: locks, full disks, network mounts, query plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.catalog_contract import CatalogContract


class TestSqliteCatalog(CatalogContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path / 'catalog.sqlite3'}"
