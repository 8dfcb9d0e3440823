"""The endpoint says what the hub says, byte for byte where clients depend on it, and shows nothing but models to those who may see them."""

from __future__ import annotations

import hashlib
import http.client as http_client
import json
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from ckptstore.catalog import Catalog
from ckptstore_server.hugging_face.models import commit_of
from tests.contract.store_place import TOKEN
from tests.readers.hub_place import READ_TOKEN, HubPlace, hub
from tests.until import until

__all__ = ["hub"]

WEIGHTS = bytes(range(256)) * 40_000  # 10 MB: more than two blocks
FILES = {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS, "1_Pooling/config.json": b"{}", "größe 日本.txt": b"x"}


@pytest.fixture(scope="module")
def model(hub: HubPlace) -> str:
    hub.put("org/model", FILES)
    return "org/model"


@pytest.fixture(scope="module")
def http(hub: HubPlace) -> httpx.Client:
    return hub.http()


def commit(hub: HubPlace, model: str) -> str:
    return commit_of(str(hub.store.stat(f"/models/{model}").publication_id))


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


# --- files -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("revision", ["main", "commit"])
def test_a_small_files_etag_is_its_git_blob(hub: HubPlace, http: httpx.Client, model: str, method: str, revision: str) -> None:
    revision = commit(hub, model) if revision == "commit" else revision
    answer = http.request(method, f"/{model}/resolve/{revision}/1_Pooling/config.json")
    assert answer.status_code == 200
    assert answer.headers["etag"] == f'"{git_blob(b"{}")}"'
    assert answer.headers["x-repo-commit"] == commit(hub, model)
    assert (answer.headers["x-linked-size"], answer.headers["content-length"]) == ("2", "2")
    assert "x-linked-etag" not in answer.headers
    assert answer.content == (b"{}" if method == "GET" else b"")


def test_a_large_files_etag_is_its_sha256_and_nothing_leads_to_another_protocol(http: httpx.Client, model: str) -> None:
    answer = http.head(f"/{model}/resolve/main/model.safetensors")
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    assert answer.headers["etag"] == answer.headers["x-linked-etag"] == f'"{digest}"'
    assert answer.headers["x-linked-size"] == str(len(WEIGHTS))
    assert not any("xet" in name or "xet" in value for name, value in answer.headers.items())
    assert http.get(f"/{model}/resolve/main/model.safetensors").content == WEIGHTS


@pytest.mark.parametrize("way", ["put", "moved"])
def test_the_etag_is_there_before_anybody_asks(hub: HubPlace, way: str, tmp_path: Path) -> None:
    """It was computed when the model came there: the objects are not read again for it."""
    path = f"/models/org/{way}-before"
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    hub.store.put(tmp_path, path if way == "put" else "/runs/before")
    if way == "moved":
        hub.store.mv("/runs/before", path)
    with hub.daemon.http() as inside:
        files = inside.get(f"/v1/publications/{hub.store.stat(path).publication_id}/files").json()["files"]
    with closing(Catalog.open(f"sqlite:///{hub.daemon.home / 'catalog.sqlite3'}", node="a test")) as catalog:
        prints = catalog.fingerprints([file["object_id"] for file in files])
    assert {prints[file["object_id"]].sha256 for file in files} == {hashlib.sha256(content).hexdigest() for content in FILES.values()}


@pytest.mark.parametrize(
    ("asked", "status", "start", "stop"),
    [
        ("bytes=0-99", 206, 0, 100),
        ("bytes=4194300-4194310", 206, 4194300, 4194311),
        ("bytes=-5", 206, len(WEIGHTS) - 5, len(WEIGHTS)),
        ("bytes=9999990-99999999999", 206, 9999990, len(WEIGHTS)),
        ("bytes=1-2,4-5", 200, 0, len(WEIGHTS)),
    ],
)
def test_a_range_gives_its_bytes(http: httpx.Client, model: str, asked: str, status: int, start: int, stop: int) -> None:
    answer = http.get(f"/{model}/resolve/main/model.safetensors", headers={"range": asked})
    assert answer.status_code == status
    assert answer.content == WEIGHTS[start:stop]
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(WEIGHTS)}"
        assert "x-repo-commit" in answer.headers


def test_a_range_beyond_the_end_and_a_known_etag_have_no_body(http: httpx.Client, model: str) -> None:
    assert http.get(f"/{model}/resolve/main/config.json", headers={"range": "bytes=99-"}).status_code == 416
    etag = http.head(f"/{model}/resolve/main/config.json").headers["etag"]
    assert http.get(f"/{model}/resolve/main/config.json", headers={"if-none-match": etag}).status_code == 304


def test_a_name_outside_of_ascii_is_found(http: httpx.Client, model: str) -> None:
    assert http.get(f"/{model}/resolve/main/größe 日本.txt").content == b"x"


# --- models ------------------------------------------------------------------------------------------------------------------------


def test_the_tree_lists_files_and_folders_as_the_hub_does(hub: HubPlace, http: httpx.Client, model: str) -> None:
    for recursive in ("True", "true", "1"):
        entries = {entry["path"]: entry for entry in http.get(f"/api/models/{model}/tree/main", params={"recursive": recursive}).json()}
        assert set(entries) == {*FILES, "1_Pooling"}
    assert [entry["path"] for entry in http.get(f"/api/models/{model}/tree/main").json()] == [
        "1_Pooling", "config.json", "größe 日本.txt", "model.safetensors"
    ]  # fmt: skip
    assert [entry["path"] for entry in http.get(f"/api/models/{model}/tree/main/1_Pooling").json()] == ["1_Pooling/config.json"]
    large = entries["model.safetensors"]
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{large['lfs']['oid']}\nsize {len(WEIGHTS)}\n".encode()
    assert large["lfs"] == {"oid": hashlib.sha256(WEIGHTS).hexdigest(), "size": len(WEIGHTS), "pointerSize": len(pointer)}
    assert large["oid"] == git_blob(pointer)
    assert entries["config.json"] == {"type": "file", "path": "config.json", "oid": git_blob(FILES["config.json"]), "size": 8}
    assert entries["1_Pooling"]["type"] == "directory"
    assert not any("xet" in key for entry in entries.values() for key in entry)


def test_a_long_listing_comes_in_pages_that_lead_on(hub: HubPlace, http: httpx.Client) -> None:
    hub.put("org/many", {f"{number:05}.txt": b"" for number in range(1001)})
    first = http.get("/api/models/org/many/tree/main", params={"recursive": "true"})
    assert first.links["next"]["url"].startswith(hub.url)
    second = http.get(first.links["next"]["url"])
    assert "link" not in second.headers
    names = [entry["path"] for page in (first, second) for entry in page.json()]
    assert names == [f"{number:05}.txt" for number in range(1001)]


def test_paths_are_told_by_form_and_by_json(http: httpx.Client, model: str) -> None:
    wanted = ["config.json", "1_Pooling", "none"]
    by_form = http.post(f"/api/models/{model}/paths-info/main", data={"paths": wanted, "expand": "true"}).json()
    by_json = http.post(f"/api/models/{model}/paths-info/main", json={"paths": wanted}).json()
    assert [entry["path"] for entry in by_form] == [entry["path"] for entry in by_json] == ["config.json", "1_Pooling"]
    assert len(by_form[0]["lastCommit"]["id"]) == 40


# --- versions ----------------------------------------------------------------------------------------------------------------------


def test_a_version_that_was_replaced_is_read_by_its_commit_as_long_as_it_is_kept(hub: HubPlace, http: httpx.Client) -> None:
    hub.put("org/versions", {"a": b"old"})
    old = commit(hub, "org/versions")
    pending = hub.put("org/versions", {"a": b"new"}, replace=True)
    assert pending is None
    assert http.get("/org/versions/resolve/main/a").content == b"new"
    assert http.get(f"/org/versions/resolve/{commit(hub, 'org/versions')}/a").content == b"new"
    gone = until("the old version is deleted", lambda: http.get(f"/org/versions/resolve/{old}/a").status_code == 404)
    assert gone
    assert http.get(f"/org/versions/resolve/{old}/a").headers["x-error-code"] == "RevisionNotFound"


def test_a_folder_beside_the_model_is_a_revision_of_it(hub: HubPlace, http: httpx.Client) -> None:
    hub.put("org/tagged", {"a": b"now"})
    hub.put("org/tagged@v1.0", {"a": b"then"})
    assert http.get("/org/tagged/resolve/v1.0/a").content == b"then"
    refs = {item["name"]: item["targetCommit"] for item in http.get("/api/models/org/tagged/refs").json()["branches"]}
    assert refs == {"main": commit(hub, "org/tagged"), "v1.0": commit(hub, "org/tagged@v1.0")}
    assert http.get(f"/org/tagged/resolve/{refs['v1.0']}/a").content == b"then"
    missing = http.get("/org/tagged/resolve/v2/a")
    assert (missing.status_code, missing.headers["x-error-code"]) == (404, "RevisionNotFound")


def test_a_folder_of_single_files_is_a_model_whose_commit_follows_its_content(hub: HubPlace, http: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    hub.store.put(tmp_path / "a", "/models/org/loose/a")
    hub.store.put(tmp_path / "a", "/models/org/loose/deep/b")
    first = http.get("/org/loose/resolve/main/deep/b")
    assert first.content == b"one"
    (tmp_path / "a").write_bytes(b"other")
    hub.store.put(tmp_path / "a", "/models/org/loose/a", replace=True)
    second = http.head("/org/loose/resolve/main/a")
    assert second.headers["x-repo-commit"] != first.headers["x-repo-commit"]
    assert second.headers["etag"] == f'"{git_blob(b"other")}"'
    pinned = http.get(f"/org/loose/resolve/{first.headers['x-repo-commit']}/deep/b")
    assert pinned.content == b"one"


def test_attached_storage_is_a_model_with_etags_of_its_versions(hub: HubPlace, http: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_bytes(b"{}")
    with hub.daemon.http() as inside:
        attached = inside.post("/v1/attachments", json={"path": "/models/public/attached", "url": str(tmp_path), "refresh_s": 0.1})
        assert attached.status_code == 200, attached.text
    first = http.get("/public/attached/resolve/main/m/config.json")
    assert (first.content, len(first.headers["etag"].strip('"'))) == (b"{}", 40)
    (tmp_path / "m" / "config.json").write_bytes(b'{"changed": true}')
    second = until("the new version is shown", lambda: _other(http.get("/public/attached/resolve/main/m/config.json"), first))
    assert second.content == b'{"changed": true}'
    assert second.headers["x-repo-commit"] != first.headers["x-repo-commit"]


def _other(answer: httpx.Response, first: httpx.Response) -> httpx.Response | None:
    return answer if answer.status_code == 200 and answer.headers["etag"] != first.headers["etag"] else None


# --- who may read what -------------------------------------------------------------------------------------------------------------


def test_without_a_token_a_private_model_does_not_exist_and_a_public_one_does(hub: HubPlace, model: str) -> None:
    hub.put("public/open", {"a": b"x"})
    with hub.http(token=None) as nobody:
        assert nobody.get("/public/open/resolve/main/a").content == b"x"
        for path in (f"/{model}/resolve/main/config.json", "/no/such/resolve/main/a", f"/api/models/{model}"):
            refused = nobody.get(path)
            assert (refused.status_code, refused.headers["x-error-code"]) == (401, "RepoNotFound")
            assert "x-repo-commit" not in refused.headers
        assert [item["id"] for item in nobody.get("/api/models").json() if not item["id"].startswith("public/")] == []
    with hub.http(token=TOKEN) as writer:
        assert writer.get(f"/{model}/resolve/main/config.json").status_code == 200


def test_a_wrong_token_is_refused_and_a_readers_token_opens_nothing_else(hub: HubPlace, model: str) -> None:
    with hub.http(token="wrong token") as stranger:
        refused = stranger.get(f"/{model}/resolve/main/config.json")
        assert (refused.status_code, refused.headers["x-error-message"]) == (401, "Invalid credentials in Authorization header")
        assert stranger.get("/api/whoami-v2").status_code == 401
    api = hub.url.removesuffix("/hf")
    for path in ("/v1/hello", "/v1/entries?path=/", "/metrics", "/v1/tree/info?path=/models", "/hfx", "/v1/../hf/../v1/hello"):
        assert httpx.get(api + path, headers={"authorization": f"Bearer {READ_TOKEN}"}).status_code == 401, path


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/../runs/resolve/main/a", 404),
        ("/%2e%2e/runs/resolve/main/a", 404),
        ("/..%2fruns/x/resolve/main/a", 404),
        ("/org/model/resolve/main/../../secret/a", 400),
        ("/org/model/resolve/main/%2e%2e/%2e%2e/runs/a", 400),
        ("/org/model/resolve/main/..%2f..%2fruns%2fa", 400),
        ("/org/model/resolve/main//etc/passwd", 400),
        ("/org/model/resolve/main/a%00b", 400),
        ("/org/model/resolve/main/%ff", 400),
        ("/org/model/resolve/main/@latest", 400),
        ("/org/model/resolve/..%2f..%2fruns/a", 404),
        ("/org/model@v1/resolve/main/a", 404),
        ("/@latest/x/resolve/main/a", 404),
        ("/org/model.git/resolve/main/a", 404),
        ("/org%2fmodel%2fx/resolve/main/a", 404),
        ("/api/models/..%2f..", 404),
        ("/api/models/org/model/tree/main/%2e%2e", 400),
        ("/datasets/org/model/resolve/main/a", 404),
        ("/" + "x" * 97 + "/resolve/main/a", 404),
    ],
)
def test_crafted_ids_and_names_are_refused(hub: HubPlace, model: str, path: str, status: int) -> None:
    """Sent as they stand: most client libraries would tidy them up."""
    url = httpx.URL(hub.url)
    connection = http_client.HTTPConnection(url.host, url.port, timeout=60)
    try:
        connection.request("GET", "/hf" + path, headers={"authorization": f"Bearer {READ_TOKEN}"})
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    assert answer.status == status, body
    assert json.loads(body)["error"]


def test_nothing_is_changed_through_the_endpoint(http: httpx.Client, model: str) -> None:
    assert http.post(f"/{model}/resolve/main/config.json").status_code == 400
    assert http.post("/api/repos/create", json={"name": "x"}).status_code in (400, 404)
    assert http.delete(f"/api/models/{model}").status_code == 405
    assert http.put(f"/{model}/resolve/main/config.json").status_code == 405
