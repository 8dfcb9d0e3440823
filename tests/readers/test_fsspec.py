"""`ckpt://` does what fsspec's contract is silent about: nothing is seen before it is closed, moves are one step, ranges are exact."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from ckptstore_client.fsspec_files.filesystem import CkptFileSystem
from ckptstore_tiers.checksums import BLOCK_BYTES
from tests.contract.store_place import TOKEN, folder
from tests.readers.fsspec_place import FilesPlace, files_place

__all__ = ["files_place", "folder"]

CONTENT = bytes(range(256)) * (BLOCK_BYTES // 128) + b"the end"  # two blocks and a bit


@pytest.fixture(params=[False, True], ids=["local", "network"])
def fs(files_place: FilesPlace, request: pytest.FixtureRequest) -> Iterator[CkptFileSystem]:
    filesystem = files_place.filesystem(over_network=request.param)
    yield filesystem
    filesystem.store.close()


# --- names -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "path", "kwargs"),
    [
        ("ckpt:///a/b", "/a/b", {}),
        ("ckpt://a/b/", "/a/b", {}),
        ("ckpt://node-7:8900/a/b", "/a/b", {"host": "node-7", "port": 8900}),
        ("ckpt://node-7:8900", "/", {"host": "node-7", "port": 8900}),
        ("/a/b", "/a/b", {}),
        ("a", "/a", {}),
        ("ckpt://", "/", {}),
    ],
)
def test_a_url_names_a_daemon_only_with_a_port(url: str, path: str, kwargs: dict[str, object]) -> None:
    assert CkptFileSystem._strip_protocol(url) == path
    assert CkptFileSystem._get_kwargs_from_urls(url) == kwargs


def test_fsspec_finds_the_protocol_by_itself(files_place: FilesPlace, folder: str) -> None:
    with fsspec.open(f"ckpt://{folder}/x", "wb", **files_place.options()) as file:
        file.write(b"content")
    url = f"ckpt://127.0.0.1:{files_place.port}{folder}/x"
    filesystem, path = fsspec.url_to_fs(url, token=TOKEN)
    assert filesystem.cat_file(path) == b"content"
    assert filesystem.unstrip_protocol(path) == url
    again = pickle.loads(pickle.dumps(filesystem))
    assert again.cat_file(path) == b"content"


@pytest.mark.parametrize("path", ["/a/../b", "/a/./b", "/a//b", "/a/@b", "/a/\x01", "/" + "x" * 201, "/a\udcff"])
def test_a_path_that_could_not_be_is_refused_and_does_not_exist(fs: CkptFileSystem, path: str) -> None:
    assert not fs.exists(path)
    with pytest.raises(ValueError):
        fs.pipe_file(path, b"x")
    with pytest.raises(ValueError):
        fs.cat_file(path)


def test_a_wrong_token_is_an_error_and_not_an_absence(files_place: FilesPlace) -> None:
    filesystem = CkptFileSystem(host="127.0.0.1", port=files_place.port, token="another token", skip_instance_cache=True)
    with pytest.raises(PermissionError, match="token"):
        filesystem.exists("/a")


# --- writing -----------------------------------------------------------------------------------------------------------------------


def test_a_file_is_seen_when_it_is_closed_and_not_before(fs: CkptFileSystem, folder: str) -> None:
    with fs.open(f"{folder}/x", "wb") as file:
        file.write(CONTENT)
        file.flush()
        assert not fs.exists(f"{folder}/x")
    assert fs.cat_file(f"{folder}/x") == CONTENT
    info = fs.info(f"{folder}/x")
    assert (info["size"], info["type"], info["durability"]) == (len(CONTENT), "file", ["nvme"])


def test_a_replaced_file_is_the_old_one_until_the_new_one_is_closed(fs: CkptFileSystem, folder: str) -> None:
    fs.pipe_file(f"{folder}/x", b"old")
    with fs.open(f"{folder}/x", "rb") as reading, fs.open(f"{folder}/x", "wb") as writing:
        writing.write(b"new and longer")
        assert fs.cat_file(f"{folder}/x") == b"old"
        writing.close()
        assert fs.cat_file(f"{folder}/x") == b"new and longer"
        assert reading.read() == b"old"


def test_a_file_left_by_an_exception_or_never_closed_is_not_stored(fs: CkptFileSystem, folder: str) -> None:
    with pytest.raises(RuntimeError), fs.open(f"{folder}/x", "wb") as file:
        file.write(b"half")
        raise RuntimeError
    forgotten = fs.open(f"{folder}/y", "wb")
    forgotten.write(b"half")
    del forgotten
    assert not fs.exists(folder)


def test_a_file_is_written_in_any_order_and_appended_to(fs: CkptFileSystem, folder: str) -> None:
    with fs.open(f"{folder}/x", "wb") as file:
        file.write(b"....world")
        file.seek(0)
        file.write(b"hey ")
    with fs.open(f"{folder}/x", "ab") as file:
        file.write(b"!")
    assert fs.cat_file(f"{folder}/x") == b"hey world!"


def test_a_transaction_stores_all_its_files_or_none(fs: CkptFileSystem, folder: str) -> None:
    with fs.transaction:
        for name in "ab":
            fs.pipe_file(f"{folder}/{name}", b"x")
        assert not fs.exists(folder)
    assert fs.ls(folder, detail=False) == [f"{folder}/a", f"{folder}/b"]
    with pytest.raises(RuntimeError), fs.transaction:
        fs.pipe_file(f"{folder}/c", b"x")
        raise RuntimeError
    assert not fs.exists(f"{folder}/c")


def test_what_was_put_whole_is_closed(fs: CkptFileSystem, folder: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    fs.store.put(tmp_path / "model", f"{folder}/model")
    for refused in (
        lambda: fs.pipe_file(f"{folder}/model/more", b"x"),
        lambda: fs.rm_file(f"{folder}/model/config.json"),
        lambda: fs.mv(f"{folder}/model/config.json", f"{folder}/x"),
    ):
        with pytest.raises(PermissionError, match="closed"):
            refused()
    assert fs.find(folder) == [f"{folder}/model/config.json"]
    assert fs.cat_file(f"{folder}/model/config.json") == b"{}"


# --- moving and removing -----------------------------------------------------------------------------------------------------------


def test_a_file_replaces_a_file_and_nothing_else_is_seen_between(fs: CkptFileSystem, folder: str) -> None:
    fs.pipe_file(f"{folder}/new", b"new")
    fs.pipe_file(f"{folder}/old", b"old")
    seen: set[bytes] = set()
    with ThreadPoolExecutor(1) as executor:
        done = executor.submit(fs.mv, f"{folder}/new", f"{folder}/old")
        while not done.done():
            seen.add(fs.cat_file(f"{folder}/old"))
        done.result()
    seen.add(fs.cat_file(f"{folder}/old"))
    assert b"new" in seen and seen <= {b"new", b"old"}
    assert fs.ls(folder, detail=False) == [f"{folder}/old"]


def test_a_folder_moves_whole_and_into_a_folder_that_is_there(fs: CkptFileSystem, folder: str) -> None:
    for name in ("a/1", "a/b/2", "c/3"):
        fs.pipe_file(f"{folder}/{name}", name.encode())
    fs.mv(f"{folder}/a", f"{folder}/d", recursive=True)
    assert fs.find(folder) == [f"{folder}/c/3", f"{folder}/d/1", f"{folder}/d/b/2"]
    fs.mv(f"{folder}/d", f"{folder}/c", recursive=True)
    assert fs.find(folder) == [f"{folder}/c/3", f"{folder}/c/d/1", f"{folder}/c/d/b/2"]
    assert fs.cat_file(f"{folder}/c/d/b/2") == b"a/b/2"
    with pytest.raises(FileNotFoundError):
        fs.mv(f"{folder}/a", f"{folder}/e")


def test_du_find_and_rm_go_by_what_lies_below(fs: CkptFileSystem, folder: str) -> None:
    for name in ("a/1", "a/b/2", "ab"):
        fs.pipe_file(f"{folder}/{name}", b"12345")
    assert fs.du(folder) == 15
    assert fs.du(f"{folder}/a") == 10
    assert sorted(fs.find(f"{folder}/a", withdirs=True)) == [f"{folder}/a", f"{folder}/a/1", f"{folder}/a/b", f"{folder}/a/b/2"]
    with pytest.raises(IsADirectoryError):
        fs.rm(f"{folder}/a")
    fs.rm(f"{folder}/a", recursive=True)
    assert fs.find(folder) == [f"{folder}/ab"]
    fs.rm(f"{folder}/*")
    assert not fs.exists(folder)


def test_folders_come_and_go_with_their_files(fs: CkptFileSystem, folder: str) -> None:
    fs.makedirs(f"{folder}/a/b", exist_ok=True)
    assert not fs.exists(folder)
    fs.pipe_file(f"{folder}/a/x", b"")
    fs.makedirs(f"{folder}/a", exist_ok=True)
    with pytest.raises(FileExistsError):
        fs.makedirs(f"{folder}/a")
    with pytest.raises(FileExistsError):
        fs.makedirs(f"{folder}/a/x", exist_ok=True)
    with pytest.raises(IsADirectoryError):
        fs.cat_file(f"{folder}/a")


# --- reading -----------------------------------------------------------------------------------------------------------------------


def test_ranges_of_many_files_are_exact_wherever_blocks_end(fs: CkptFileSystem, folder: str) -> None:
    contents = {f"{folder}/a": CONTENT, f"{folder}/b": CONTENT[::-1], f"{folder}/empty": b""}
    for path, content in contents.items():
        fs.pipe_file(path, content)
    ranges = [(0, 1), (5, 5), (BLOCK_BYTES - 3, BLOCK_BYTES + 3), (-3, None), (None, 2), (10, 10**9), (2 * BLOCK_BYTES, None), (7, 9)]
    paths = [path for path in contents for _ in ranges]
    starts, ends = ([item[side] for _ in contents for item in ranges] for side in (0, 1))
    found = fs.cat_ranges(paths, starts, ends)
    assert found == [contents[path][start:end] for path, start, end in zip(paths, starts, ends, strict=True)]
    assert fs.cat_file(f"{folder}/a", start=3, end=-3) == CONTENT[3:-3]


def test_a_range_of_a_file_that_is_not_there_is_told_in_its_place(fs: CkptFileSystem, folder: str) -> None:
    fs.pipe_file(f"{folder}/a", b"abc")
    first, second = fs.cat_ranges([f"{folder}/a", f"{folder}/no"], [0, 0], [2, 2])
    assert first == b"ab"
    assert isinstance(second, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges([f"{folder}/no"], [0], [2], on_error="raise")


def test_reading_bit_by_bit_and_in_large_pieces_gives_the_same(fs: CkptFileSystem, folder: str) -> None:
    fs.pipe_file(f"{folder}/x", CONTENT)
    with fs.open(f"{folder}/x") as file:
        parts = [file.read(5), file.read(BLOCK_BYTES), file.readline()]
        file.seek(len(b"".join(parts)))
        rest = bytearray(2 * BLOCK_BYTES)
        count = file.readinto(rest)
        assert file.read(1) == b""
    assert b"".join([*parts, bytes(rest[:count])]) == CONTENT


def test_a_path_may_go_through_latest(fs: CkptFileSystem, folder: str) -> None:
    for step in (1, 2):
        fs.store.save(f"{folder}/step-{step}", {"x": step}).wait("nvme", timeout_s=60)
    assert fs.ls(folder, detail=False) == [f"{folder}/step-1", f"{folder}/step-2"]
    names = fs.ls(f"{folder}/@latest", detail=False)
    assert names == [f"{folder}/@latest/{name}" for name in ("checkpoint.json", "rank-00000-of-00001.safetensors")]
    assert fs.cat_file(names[0]) == fs.cat_file(f"{folder}/step-2/checkpoint.json")
