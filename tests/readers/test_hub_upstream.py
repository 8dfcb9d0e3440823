"""An endpoint that has another one behind it: models come from there once, and go on being served when it is gone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from ckptstore_bench.ports import free_port
from tests.contract.store_place import TOKEN
from tests.daemon_process import DaemonProcess
from tests.readers.hub_place import READ_TOKEN, HubPlace, hub
from tests.services.small_hub import MODEL, NAME, small_hub

__all__ = ["hub"]

WEIGHTS = bytes(range(251)) * 80_000  # 20 MB, and no block like another


@contextmanager
def behind(upstream: str, token: str = "") -> Iterator[httpx.Client]:
    """A client of a daemon that has this upstream."""
    home = Path(tempfile.mkdtemp(prefix="ckptstore-near-", dir="/dev/shm"))
    port = free_port()
    (home / "config.toml").write_text(
        f'listen = "127.0.0.1:{port}"\ntoken = "{TOKEN}"\n'
        f'[hugging_face]\nupstream = "{upstream}"\nupstream_token = "{token or "none"}"\n'
        f'[[tiers]]\nname = "nvme"\nkind = "posix"\npath = "{home / "nvme"}"\n'
    )
    headers = {"authorization": f"Bearer {TOKEN}"}
    try:
        with DaemonProcess(home), httpx.Client(base_url=f"http://127.0.0.1:{port}/hf", headers=headers, timeout=60.0) as client:
            yield client
    finally:
        shutil.rmtree(home)


@pytest.fixture
def near(hub: HubPlace) -> Iterator[httpx.Client]:
    with behind(hub.url, READ_TOKEN) as client:
        yield client


def test_a_model_of_upstream_is_the_same_here_etags_and_all(hub: HubPlace, near: httpx.Client) -> None:
    hub.put("far/model", {"config.json": b"{}", "deep/model.safetensors": WEIGHTS})
    with hub.http() as there:
        for name in ("config.json", "deep/model.safetensors"):
            expected = there.head(f"/far/model/resolve/main/{name}").headers
            found = near.head(f"/far/model/resolve/main/{name}").headers
            for header in ("etag", "x-repo-commit", "x-linked-size", "content-length"):
                assert found[header] == expected[header]
        tree = f"/api/models/far/model/tree/{expected['x-repo-commit']}?recursive=true"
        assert [entry["path"] for entry in near.get(tree).json()] == [entry["path"] for entry in there.get(tree).json()]
    with ThreadPoolExecutor(4) as executor:
        contents = list(executor.map(lambda _: near.get("/far/model/resolve/main/deep/model.safetensors").content, range(4)))
    assert all(content == WEIGHTS for content in contents)
    ranged = near.get("/far/model/resolve/main/deep/model.safetensors", headers={"range": "bytes=5000000-5000009"})
    assert ranged.content == WEIGHTS[5000000:5000010]


def test_what_upstream_does_not_have_is_told_in_its_words(near: httpx.Client, hub: HubPlace) -> None:
    hub.put("far/small", {"a": b"x"}, replace=True)
    for path, code in (
        ("/no/such/resolve/main/a", "RepoNotFound"),
        ("/far/small/resolve/v9/a", "RevisionNotFound"),
        ("/far/small/resolve/main/b", "EntryNotFound"),
    ):
        answer = near.get(path)
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, code)


def test_what_is_kept_goes_on_while_upstream_is_gone(hub: HubPlace, near: httpx.Client) -> None:
    hub.put("far/kept", {"model.safetensors": WEIGHTS, "never-read.bin": WEIGHTS[::-1]})
    assert near.get("/far/kept/resolve/main/model.safetensors").content == WEIGHTS
    hub.daemon.kill()
    try:
        assert near.get("/far/kept/resolve/main/model.safetensors").content == WEIGHTS
        for path in ("/far/kept/resolve/main/never-read.bin", "/far/unknown/resolve/main/a"):
            assert near.get(path).status_code == 503
    finally:
        hub.daemon.start()
    assert near.get("/far/kept/resolve/main/never-read.bin").content == WEIGHTS[::-1]


FILE = f"/{MODEL}/resolve/main/{NAME}"


def test_the_first_byte_comes_while_the_rest_is_still_upstream() -> None:
    with small_hub(WEIGHTS) as far, behind(far.url) as near:
        far.first_only.set()
        with near.stream("GET", FILE) as answer:
            chunks = answer.iter_raw()
            first = next(chunks)
            assert not far.go_on.is_set()
            far.go_on.set()
            assert first + b"".join(chunks) == WEIGHTS


def test_sixteen_readers_of_a_cold_model_cost_upstream_one_copy() -> None:
    with small_hub(WEIGHTS) as far, behind(far.url) as near:
        with ThreadPoolExecutor(16) as executor:
            contents = list(executor.map(lambda _: near.get(FILE).content, range(16)))
        assert all(content == WEIGHTS for content in contents)
        assert far.sent_bytes == len(WEIGHTS)
        assert far.questions <= 16
        assert near.get(FILE).content == WEIGHTS
        assert far.sent_bytes == len(WEIGHTS)


def test_an_upstream_that_asks_for_patience_gets_it() -> None:
    with small_hub(WEIGHTS) as far, behind(far.url) as near:
        far.statuses = [429, 503, 500]
        assert near.get(FILE).content == WEIGHTS


def test_a_new_version_upstream_is_a_new_commit_and_never_a_mix() -> None:
    with small_hub(WEIGHTS) as far, behind(far.url) as near:
        old = near.head(FILE).headers["x-repo-commit"]
        assert near.get(FILE).content == WEIGHTS
        far.content = WEIGHTS[::-1]
        pinned = near.get(f"/{MODEL}/resolve/{old}/{NAME}")
        assert pinned.content == WEIGHTS
        new = near.head(f"/{MODEL}/resolve/another-branch/{NAME}").headers["x-repo-commit"]
        assert new != old
        assert near.get(f"/{MODEL}/resolve/{new}/{NAME}").content == WEIGHTS[::-1]
