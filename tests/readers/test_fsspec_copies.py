"""What is read through `ckpt://` is held once: no second copy of it is made on the way to the caller."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptstore_client.api import Api
from ckptstore_client.fsspec_files.filesystem import CkptFileSystem
from ckptstore_client.fsspec_files.new_bytes import filled_bytes
from ckptstore_tiers.checksums import BLOCK_BYTES
from tests.contract.store_place import folder
from tests.readers.fsspec_place import FilesPlace, files_place

__all__ = ["files_place", "folder"]

DATA = os.urandom(8 * BLOCK_BYTES + 77)


@pytest.fixture
def fs(files_place: FilesPlace, folder: str, tmp_path: Path) -> Iterator[CkptFileSystem]:
    filesystem = files_place.filesystem(over_network=False)
    (tmp_path / "data").write_bytes(DATA)
    filesystem.put_file(tmp_path / "data", f"{folder}/data")
    filesystem.put_file(tmp_path / "data", f"{folder}/deep/data")
    yield filesystem
    filesystem.store.close()


def peak_bytes(work: Callable[[], Any]) -> tuple[Any, int]:
    tracemalloc.start()
    try:
        found = work()
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_file_and_a_range_are_held_once(fs: CkptFileSystem, folder: str) -> None:
    path = f"{folder}/data"
    fs.cat_file(path)  # what is imported and connected at the first use is not measured
    found, held = peak_bytes(lambda: fs.cat_file(path))
    assert found == DATA and held < 1.3 * len(DATA)
    found, held = peak_bytes(lambda: fs.cat_file(path, 5, -7))
    assert found == DATA[5:-7] and held < 1.3 * len(DATA)
    found, held = peak_bytes(lambda: fs.cat_ranges([path], [3], [len(DATA) - 3]))
    assert found == [DATA[3:-3]] and held < 1.3 * len(DATA)
    with fs.open(path, "rb", cache_type="none") as file:
        found, held = peak_bytes(lambda: file.read(len(DATA)))
    assert found == DATA and held < 1.3 * len(DATA)


def test_reading_a_file_asks_what_it_is_once_and_a_folder_is_told_as_one(
    fs: CkptFileSystem, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = Api.call

    def call(self: Api, method: str, route: str, *arguments: Any, **options: Any) -> Any:
        asked.append(route)
        return original(self, method, route, *arguments, **options)

    monkeypatch.setattr(Api, "call", call)
    assert fs.cat_file(f"{folder}/data", 0, 10) == DATA[:10]
    assert asked.count("tree/info") == 1
    for read in (fs.cat_file, fs.open):
        with pytest.raises(IsADirectoryError):
            read(f"{folder}/deep")
        with pytest.raises(FileNotFoundError):
            read(f"{folder}/nowhere")


def test_bytes_that_could_not_be_filled_are_given_to_nobody() -> None:
    def fails(view: memoryview) -> None:
        view[:3] = b"abc"
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        filled_bytes(1000, fails)
    made = [filled_bytes(size, lambda view: view.__setitem__(slice(None), b"x" * len(view))) for size in (0, 1, 2, 4097)]
    assert made == [b"", b"x", b"xx", b"x" * 4097]
    assert filled_bytes(1, lambda view: view.__setitem__(0, 0)) == b"\0" and bytes([120]) == b"x"
