"""`ckpt://` passes fsspec's own contract. Scenarios that tests only read are made once a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fsspec.tests import abstract
from fsspec.tests.abstract.common import GLOB_EDGE_CASES_TESTS

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


#: Some forty patterns, each in four ways. Which files a pattern means is asked of us by `get`, with all of them; what `put` and a copy
#: do with those files does not depend on it. So these two take one pattern in five, and the others in `make soak`.
PATTERNS = [
    pytest.param(*values, marks=() if number % 5 == 0 else pytest.mark.soak)
    for number, values in enumerate(GLOB_EDGE_CASES_TESTS["argvalues"])
]


class TestCopy(abstract.AbstractCopyTests, Fixtures):  # type: ignore[misc]
    @pytest.mark.parametrize(GLOB_EDGE_CASES_TESTS["argnames"], PATTERNS)
    def test_copy_glob_edge_cases(
        self, path: str, recursive: bool, maxdepth: int | None, expected: list[str],
        fs: Any, fs_join: Any, fs_glob_edge_cases_files: str, fs_target: str, fs_sanitize_path: Any,
    ) -> None:  # fmt: skip
        super().test_copy_glob_edge_cases(
            path, recursive, maxdepth, expected, fs, fs_join, fs_glob_edge_cases_files, fs_target, fs_sanitize_path
        )


class TestGet(abstract.AbstractGetTests, Fixtures):  # type: ignore[misc]
    pass


class TestPut(abstract.AbstractPutTests, Fixtures):  # type: ignore[misc]
    @pytest.mark.parametrize(GLOB_EDGE_CASES_TESTS["argnames"], PATTERNS)
    def test_put_glob_edge_cases(
        self, path: str, recursive: bool, maxdepth: int | None, expected: list[str],
        fs: Any, fs_join: Any, fs_target: str, local_glob_edge_cases_files: str, local_join: Any, fs_sanitize_path: Any,
    ) -> None:  # fmt: skip
        super().test_put_glob_edge_cases(
            path, recursive, maxdepth, expected, fs, fs_join, fs_target, local_glob_edge_cases_files, local_join, fs_sanitize_path
        )


class TestOpen(abstract.AbstractOpenTests, Fixtures):  # type: ignore[misc]
    pass


class TestPipe(abstract.AbstractPipeTests, Fixtures):  # type: ignore[misc]
    pass
