"""An endpoint that has another one behind it: models come from there once, and go on being served when it is gone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.contract.store_place import TOKEN, free_port
from tests.daemon_process import DaemonProcess
from tests.readers.hub_place import READ_TOKEN, HubPlace, hub

__all__ = ["hub"]

WEIGHTS = bytes(range(251)) * 80_000  # 20 MB, and no block like another


@pytest.fixture
def near(hub: HubPlace) -> Iterator[tuple[DaemonProcess, httpx.Client]]:
    """A daemon whose upstream is `hub`."""
    home = Path(tempfile.mkdtemp(prefix="ckptstore-near-", dir="/dev/shm"))
    port = free_port()
    (home / "config.toml").write_text(
        f'listen = "127.0.0.1:{port}"\ntoken = "{TOKEN}"\n'
        f'[hugging_face]\nupstream = "{hub.url}"\nupstream_token = "{READ_TOKEN}"\n'
        f'[[tiers]]\nname = "nvme"\nkind = "posix"\npath = "{home / "nvme"}"\n'
    )
    try:
        headers = {"authorization": f"Bearer {TOKEN}"}
        with (
            DaemonProcess(home) as process,
            httpx.Client(base_url=f"http://127.0.0.1:{port}/hf", headers=headers, timeout=60.0) as client,
        ):
            yield process, client
    finally:
        shutil.rmtree(home)


def test_a_model_of_upstream_is_the_same_here_etags_and_all(hub: HubPlace, near: tuple[DaemonProcess, httpx.Client]) -> None:
    hub.put("far/model", {"config.json": b"{}", "deep/model.safetensors": WEIGHTS})
    _, client = near
    with hub.http() as there:
        for name in ("config.json", "deep/model.safetensors"):
            expected = there.head(f"/far/model/resolve/main/{name}").headers
            found = client.head(f"/far/model/resolve/main/{name}").headers
            for header in ("etag", "x-repo-commit", "x-linked-size", "content-length"):
                assert found[header] == expected[header]
        tree = f"/api/models/far/model/tree/{expected['x-repo-commit']}?recursive=true"
        assert [entry["path"] for entry in client.get(tree).json()] == [entry["path"] for entry in there.get(tree).json()]
    with ThreadPoolExecutor(4) as executor:
        contents = list(executor.map(lambda _: client.get("/far/model/resolve/main/deep/model.safetensors").content, range(4)))
    assert all(content == WEIGHTS for content in contents)
    ranged = client.get("/far/model/resolve/main/deep/model.safetensors", headers={"range": "bytes=5000000-5000009"})
    assert ranged.content == WEIGHTS[5000000:5000010]


def test_what_upstream_does_not_have_is_told_in_its_words(near: tuple[DaemonProcess, httpx.Client], hub: HubPlace) -> None:
    hub.put("far/small", {"a": b"x"}, replace=True)
    _, client = near
    for path, code in (
        ("/no/such/resolve/main/a", "RepoNotFound"),
        ("/far/small/resolve/v9/a", "RevisionNotFound"),
        ("/far/small/resolve/main/b", "EntryNotFound"),
    ):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, code)


def test_what_is_kept_goes_on_while_upstream_is_gone(hub: HubPlace, near: tuple[DaemonProcess, httpx.Client]) -> None:
    hub.put("far/kept", {"model.safetensors": WEIGHTS, "never-read.bin": WEIGHTS[::-1]})
    _, client = near
    assert client.get("/far/kept/resolve/main/model.safetensors").content == WEIGHTS
    hub.daemon.kill()
    try:
        assert client.get("/far/kept/resolve/main/model.safetensors").content == WEIGHTS
        for path in ("/far/kept/resolve/main/never-read.bin", "/far/unknown/resolve/main/a"):
            assert client.get(path).status_code == 503
    finally:
        hub.daemon.start()
    assert client.get("/far/kept/resolve/main/never-read.bin").content == WEIGHTS[::-1]
