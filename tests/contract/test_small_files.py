"""A folder of many small files goes into the store by the bundle, from the daemon's node and over the network."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ckptstore import bundle
from ckptstore.errors import AttemptAborted, ChecksumMismatch, InvalidInput
from ckptstore.wire import Abort, AttemptOpened, AttemptStatus, BundleStored, OpenAttempt
from ckptstore_client import Store, files
from ckptstore_client.api import Api
from tests.contract.store_place import WAIT_S, Place, daemon, folder, place, store
from tests.until import until

__all__ = ["daemon", "folder", "place", "store"]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Small files in several folders, an empty one, and one that is not small."""
    top = tmp_path / "many"
    for number in range(80):
        name = top / f"d{number % 7}" / f"f{number:03}"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(os.urandom(number))
    (top / "large").write_bytes(os.urandom(bundle.SMALL_FILE_BYTES + 1))
    (top / "d0" / "näme with spaces\\").write_bytes(b"x" * bundle.SMALL_FILE_BYTES)
    return top


def contents(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the daemon."""
    seen: list[str] = []
    original = Api.call

    def call(self: Api, method: str, route: str, *arguments: Any, **options: Any) -> Any:
        seen.append(f"{method} {route}")
        return original(self, method, route, *arguments, **options)

    monkeypatch.setattr(Api, "call", call)
    return seen


def test_a_small_file_that_is_damaged_or_gone_is_got_from_another_tier_and_mended(
    store: Store, place: Place, folder: str, many: Path, tmp_path: Path
) -> None:
    store.put(many, f"{folder}/many").wait("pfs", timeout_s=WAIT_S)
    near = place.daemon.home / "nvme" / "objects" / folder.lstrip("/") / "many" / "d3"
    damaged = next(near.glob("f010~*"))
    damaged.chmod(0o644)
    damaged.write_bytes(bytes(10))
    next(near.glob("f017~*")).unlink()
    assert contents(store.get(f"{folder}/many", tmp_path / "got")) == contents(many)
    until("the damaged file is mended", lambda: damaged.exists() and damaged.read_bytes() != bytes(10))


def test_many_small_files_are_put_by_few_requests_and_got_back(
    store: Store, folder: str, many: Path, tmp_path: Path, asked: list[str]
) -> None:
    heard: list[tuple[int, int]] = []
    store.put(many, f"{folder}/many", progress=lambda done, total: heard.append((done, total)))
    assert len(asked) < 10, asked
    whole_bytes = sum(map(len, contents(many).values()))
    assert heard[-1] == (whole_bytes, whole_bytes)
    assert contents(store.get(f"{folder}/many", tmp_path / "got")) == contents(many)


def test_bundles_are_bounded_in_files_and_in_bytes(
    store: Store, folder: str, many: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "MAX_FILES", 20)
    store.put(many, f"{folder}/a")
    assert sum("bundle" in request for request in asked) == 4  # and the last one, alone, by itself
    monkeypatch.setattr(bundle, "MAX_CONTENT_BYTES", bundle.SMALL_FILE_BYTES)
    store.put(many, f"{folder}/b")
    assert contents(store.get(f"{folder}/b", tmp_path / "got")) == contents(many)


def test_a_file_that_grows_while_it_is_put_is_stored_as_it_is_then(
    store: Store, folder: str, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = many / "d1" / "f001"
    original = files._small_content

    def grows(path: Path) -> bytes | None:
        if path == grown:
            grown.write_bytes(bytes(bundle.SMALL_FILE_BYTES + 7))
        return original(path)

    monkeypatch.setattr(files, "_small_content", grows)
    store.put(many, f"{folder}/many")
    assert store.get(f"{folder}/many/d1/f001", tmp_path / "one").read_bytes() == bytes(bundle.SMALL_FILE_BYTES + 7)


def opened(api: Api, path: str, kind: str) -> str:
    message = OpenAttempt(path=path, token="token-" + path[-10:], ordinal=0, rank=0, world_size=1, kind=kind, size_bytes=0, replace=False)
    return api.call("POST", "attempts", AttemptOpened, message).attempt_id


def send(store: Store, attempt_id: str, message: bytes) -> None:
    store._connection.run(lambda transport: transport.api.call("PUT", f"attempts/{attempt_id}/bundle", BundleStored, content=message))


def test_what_is_no_bundle_or_comes_to_no_folder_is_refused_and_stores_nothing(store: Store, folder: str) -> None:
    attempt_id = store._connection.run(lambda transport: opened(transport.api, f"{folder}/a", "folder"))
    good = bundle.pack([("one", b"1"), ("deep/two", b"22")])
    wrong = [
        b"", b"[]\n", b"{}\n", good[:-1], good + b"x", b"[[\"a\",1]]", b"[[\"a\",-1],[\"b\",2]]\nx", bundle.pack([("a", b""), ("a", b"")]),
        bundle.pack([("../a", b"1")]), bundle.pack([("a/b", b"1"), ("a", b"2")]), bundle.pack([("n" * 201, b"1")]),
        bundle.pack([(str(number), b"") for number in range(bundle.MAX_FILES + 1)]),
    ]  # fmt: skip
    for message in wrong:
        with pytest.raises(InvalidInput):
            send(store, attempt_id, message)
    file_id = store._connection.run(lambda transport: opened(transport.api, f"{folder}/file", "file"))
    with pytest.raises(InvalidInput, match="bundle"):
        send(store, file_id, good)
    for _ in range(2):  # it may be sent again, if the answer was lost
        send(store, attempt_id, good)
    with pytest.raises(ChecksumMismatch):
        send(store, attempt_id, bundle.pack([("one", b"!")]))
    store._ask(lambda api: api.call("POST", f"attempts/{attempt_id}/abort", AttemptStatus, Abort(reason="enough")))
    with pytest.raises(AttemptAborted):
        send(store, attempt_id, good)


def test_many_small_files_are_got_by_few_requests(store: Store, folder: str, many: Path, tmp_path: Path, asked: list[str]) -> None:
    store.put(many, f"{folder}/many")
    asked.clear()
    assert contents(store.get(f"{folder}/many", tmp_path / "got")) == contents(many)
    assert len(asked) < 15, asked


def test_small_files_of_a_model_have_the_hubs_names_when_they_are_published(store: Store, place: Place, folder: str, many: Path) -> None:
    store.put(many, f"/models{folder}")
    with closing(sqlite3.connect(f"file:{place.daemon.home}/catalog.sqlite3?mode=ro", uri=True)) as catalog:
        query = "SELECT o.name, o.sha256, o.git_sha1 FROM objects o JOIN publications p ON p.publication_id = o.attempt_id WHERE p.path = ?"
        found = {name: names for name, *names in catalog.execute(query, (f"/models{folder}",))}
    assert found == {
        name: [hashlib.sha256(data).hexdigest(), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()]
        for name, data in contents(many).items()
    }
