"""The tree of all readers shows what was published, as folders, files and `@latest`, and gives the bytes of the version that was opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

import ckptstore
from ckptstore.errors import InvalidInput, NotFound, StaleVersion
from ckptstore.tree_messages import FileListing, TreeInfo
from ckptstore_bench.ports import free_port
from ckptstore_tiers.checksums import BLOCK_BYTES
from tests.contract.store_place import WAIT_S, start
from tests.readers.places import Inside, content_of, inside

DATA = os.urandom(2 * BLOCK_BYTES + 12345)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds three checkpoints, a folder and a file; its daemon has ended."""
    home, local = tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("local")
    (local / "model" / "sub").mkdir(parents=True)
    (local / "model" / "a.bin").write_bytes(DATA)
    (local / "model" / "sub" / "b.txt").write_bytes(b"inside")
    (local / "note.txt").write_bytes(b"a note")
    with start(home, free_port()) as daemon, ckptstore.connect(home=home, start=False) as store:
        for step in (1, 2, 3):
            store.save(f"/run/step-{step}", {"w": np.full(10, step)}).wait("pfs", timeout_s=WAIT_S)
        store.put(local / "model", "/models/m").wait("pfs", timeout_s=WAIT_S)
        store.put(local / "note.txt", "/run/Z.txt").wait("pfs", timeout_s=WAIT_S)
        assert daemon.stop() == 0
    return home


@pytest.fixture(scope="module")
def tree(home: Path) -> Iterator[Inside]:
    with inside(home) as opened:
        yield opened


def test_folders_checkpoints_files_and_the_link_are_what_readers_see(tree: Inside) -> None:
    assert [tree.look(path).kind for path in ("/", "/run", "/run/step-1", "/models/m/sub")] == ["folder"] * 4
    file = tree.look("/models/m/a.bin")
    assert (file.kind, file.size_bytes, file.durability, file.whole) == ("file", len(DATA), ("nvme", "pfs"), True)
    assert file.modified_s > 0
    assert tree.look("/run/Z.txt").version != file.version
    link = tree.look("/run/@latest")
    assert (link.kind, link.target) == ("link", "/run/step-3")
    with pytest.raises(NotFound):
        tree.look("/models/@latest")


def test_a_path_may_go_through_latest(tree: Inside) -> None:
    assert tree.look("/run/@latest", resolve=True).path == "/run/step-3"
    (name,) = [name for name in tree.names("/run/@latest") if name.endswith(".safetensors")]
    assert tree.look(f"/run/@latest/{name}").version == tree.look(f"/run/step-3/{name}").version
    file, origin = tree.open(f"/run/@latest/{name}")
    assert content_of(file, origin)[:8] != b""
    assert file.path == f"/run/step-3/{name}"


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_a_listing_is_in_byte_order_with_latest_where_it_belongs_whatever_the_page(tree: Inside, limit: int) -> None:
    assert tree.names("/run", limit) == ["@latest", "Z.txt", "step-1", "step-2", "step-3"]
    assert tree.names("/models/m", limit) == ["a.bin", "sub"]
    assert tree.names("/models", limit) == ["m"]
    page = tree.run(tree.services.tree.list("/models/m"))
    assert [(entry.kind, entry.size_bytes) for entry in page.entries] == [("file", len(DATA)), ("folder", 0)]
    assert page.entries[0] == tree.look("/models/m/a.bin").model_copy(update={"whole": False})


@pytest.mark.parametrize(
    ("offset", "stop"),
    [(0, len(DATA)), (1, 2), (BLOCK_BYTES - 1, BLOCK_BYTES + 1), (BLOCK_BYTES, 2 * BLOCK_BYTES), (5, len(DATA)), (len(DATA) - 1, len(DATA)),
     (BLOCK_BYTES, len(DATA) - 1), (7, 7)],
)  # fmt: skip
def test_any_range_of_an_open_file_is_what_was_put(tree: Inside, offset: int, stop: int) -> None:
    file, origin = tree.open("/models/m/a.bin")
    assert content_of(file, origin, offset, stop) == DATA[offset:stop]


def test_a_damaged_replica_is_passed_over(tree: Inside) -> None:
    file, origin = tree.open("/models/m/sub/b.txt")
    (stored,) = (tree.node.settings.home / "nvme" / "objects" / "models" / "m" / "sub").glob("b.txt~*")
    stored.write_bytes(b"INSIDE")
    assert content_of(file, origin) == b"inside"


def test_what_is_no_file_or_not_there_is_said(tree: Inside) -> None:
    with pytest.raises(InvalidInput, match="folder"):
        tree.open("/models/m")
    with pytest.raises(NotFound):
        tree.open("/models/m/c.bin")
    for path in ("models", "/models/../run", "/models//m", "/models/@other/m"):
        with pytest.raises(InvalidInput):
            tree.open(path)


def test_a_version_outlives_its_path_as_long_as_something_holds_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"one")
    home = tmp_path / "home"
    with start(home, free_port()) as daemon, ckptstore.connect(home=home, start=False) as store:
        store.put(tmp_path / "one", "/a").wait("pfs", timeout_s=WAIT_S)
        store.put(tmp_path / "one", "/b").wait("pfs", timeout_s=WAIT_S)
        assert daemon.stop() == 0
    with inside(home) as tree:
        first, origin = tree.open("/a")
        tree.node.catalog.remove("/a")
        assert content_of(*tree.open("/a", first.version)) == b"one"
        with pytest.raises(StaleVersion):
            tree.open("/b", first.version)
        with pytest.raises(StaleVersion):
            tree.open("/b", "0" * 32)
        catalog = tree.node.catalog
        while chores := [chore for tier in ("nvme", "pfs") for chore in catalog.chores(tier, grace_s=0.0, limit=100)]:
            for chore in chores:
                catalog.chore_done(chore)
        with pytest.raises(StaleVersion):
            tree.open("/a", first.version)
        with pytest.raises(StaleVersion):
            content_of(first, origin)
        with pytest.raises(NotFound):
            tree.open("/a")


def test_the_routes_answer_as_the_tree_does(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"one")
    with start(tmp_path / "home", free_port()) as daemon, ckptstore.connect(home=daemon.home, start=False) as store, daemon.http() as http:
        store.put(tmp_path / "one", "/f/é b").wait("nvme", timeout_s=WAIT_S)
        info = TreeInfo.model_validate(_answer(http.get("/v1/tree/info", params={"path": "/f/é b"})))
        assert (info.kind, info.size_bytes, info.path) == ("file", 3, "/f/é b")
        listing = FileListing.model_validate(_answer(http.get("/v1/tree/list", params={"path": "/f"})))
        assert [entry.version for entry in listing.entries] == [info.version]
        assert http.get("/v1/tree/info", params={"path": "/nothing"}).status_code == 404
        assert http.get("/v1/tree/info", params={"path": "/f/../f"}).status_code == 400
        assert http.get("/v1/tree/list", params={"path": "/f/é b"}).status_code == 404


def _answer(response: httpx.Response) -> object:
    assert response.status_code == 200, response.text
    return response.json()
