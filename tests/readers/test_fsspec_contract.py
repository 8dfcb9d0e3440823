"""`ckpt://` passes fsspec's own contract. Scenarios that tests only read are made once a class."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fsspec.tests import abstract

from ckptstore_client.fsspec_files.filesystem import CkptFileSystem
from tests.readers.fsspec_place import files_place, fs

__all__ = ["files_place", "fs"]


def join(*parts: str) -> str:
    return "/".join(parts)


class Fixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    @pytest.fixture(scope="class")
    def fs(self, fs: CkptFileSystem) -> CkptFileSystem:
        return fs

    @pytest.fixture(scope="class")
    def fs_path(self) -> str:
        return f"/{type(self).__name__}"

    @pytest.fixture(scope="class")
    def fs_join(self) -> Callable[..., str]:
        return join

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False

    @pytest.fixture(scope="class")
    def fs_bulk_operations_scenario_0(self, fs: CkptFileSystem, fs_path: str) -> str:
        return str(self._bulk_operations_scenario_0(fs, join, f"{fs_path}/bulk"))

    @pytest.fixture(scope="class")
    def fs_glob_edge_cases_files(self, fs: CkptFileSystem, fs_path: str) -> str:
        return str(self._glob_edge_cases_files(fs, join, f"{fs_path}/glob"))

    @pytest.fixture(scope="class")
    def fs_10_files_with_hashed_names(self, fs: CkptFileSystem, fs_path: str) -> str:
        return str(self._10_files_with_hashed_names(fs, join, f"{fs_path}/hashed"))


class TestCopy(abstract.AbstractCopyTests, Fixtures):  # type: ignore[misc]
    pass


class TestGet(abstract.AbstractGetTests, Fixtures):  # type: ignore[misc]
    pass


class TestPut(abstract.AbstractPutTests, Fixtures):  # type: ignore[misc]
    pass


class TestOpen(abstract.AbstractOpenTests, Fixtures):  # type: ignore[misc]
    pass


class TestPipe(abstract.AbstractPipeTests, Fixtures):  # type: ignore[misc]
    pass
