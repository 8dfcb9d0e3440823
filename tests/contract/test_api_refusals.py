"""Whatever is asked of the API that it may not do is refused by name, with the right status, and nothing has changed afterwards.

Over TCP with a bearer token, as a stranger would come; what the namespace lists and every file below the tiers is compared before and
after. The OpenAPI page that the daemon shows is what schemathesis makes its own requests from.
"""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

import ckptstore
from ckptstore.errors import BY_CODE, AlreadyExists, CkptStoreError, InvalidInput, NotFound, PathConflict
from ckptstore.wire import SESSION_HEADER
from ckptstore_bench.ports import free_port
from ckptstore_client import Store
from tests.daemon_process import DaemonProcess, write_config
from tests.until import until

TOKEN = "a-token-of-tests-0123456789"
MAX_REQUEST_BYTES = 1 << 20
#: Requests that schemathesis makes for each operation.
EXAMPLES = 15
NOBODY = "0" * 32


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DaemonProcess, str]]:
    home = tmp_path_factory.mktemp("refusals")
    port = free_port()
    tiers: list[dict[str, Any]] = [
        {"name": "nvme", "kind": "posix", "path": home / "nvme"},
        {"name": "pfs", "kind": "posix", "path": home / "pfs", "shared": True},
    ]
    write_config(
        home, tiers=tiers, listen=f"127.0.0.1:{port}", token=TOKEN, grace_s=0, max_request=MAX_REQUEST_BYTES, memory={"limit": "64MiB"}
    )
    with DaemonProcess(home) as process:
        url = f"http://127.0.0.1:{port}"
        with ckptstore.connect(url, token=TOKEN) as store:
            (home / "note").write_text("a file")
            store.save("/run/step-1", {"w": np.arange(1000)}, step=1).wait("pfs", timeout_s=60)
            store.put(home / "note", "/run/note", timeout_s=60).wait("pfs", timeout_s=60)
        yield process, url


@pytest.fixture
def store(daemon: tuple[DaemonProcess, str]) -> Iterator[Store]:
    with ckptstore.connect(daemon[1], token=TOKEN) as store:
        yield store


@pytest.fixture
def http(daemon: tuple[DaemonProcess, str]) -> Iterator[httpx.Client]:
    """With the right token and an open session."""
    with httpx.Client(base_url=daemon[1], headers={"authorization": f"Bearer {TOKEN}"}, timeout=60.0) as client:
        client.headers[SESSION_HEADER] = client.post("/v1/sessions").json()["session"]
        yield client


@pytest.fixture
def nothing_changes(daemon: tuple[DaemonProcess, str], store: Store) -> Iterator[None]:
    before = everything(daemon[0].home, store)
    yield
    assert everything(daemon[0].home, store) == before


def everything(home: Path, store: Store) -> dict[str, Any]:
    """The namespace as it is listed, and every file below the tiers with its bytes."""
    listed = {entry.path: entry.model_dump() for folder in ("/", "/run") for entry in store.ls(folder)}
    files = [path for tier in ("nvme", "pfs") for path in sorted((home / tier).rglob("*")) if path.is_file()]
    return listed | {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(response: httpx.Response, leaf: type[CkptStoreError]) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    assert issubclass(BY_CODE[body["error"]], leaf), body
    assert response.status_code == BY_CODE[body["error"]].http_status
    assert body["why"]
    assert TOKEN not in response.text
    return body


# --- paths ---------------------------------------------------------------------------------------------------------------------------

BAD_PATHS = [
    "",
    "relative",
    "run/step-1",
    "/",
    "//run",
    "/run/",
    "/run//x",
    "/run/../x",
    "/..",
    "/./x",
    "/run/.",
    "/run/a\0b",
    "/run/a\nb",
    "/run/\x7f",
    "/run/@latest",
    "/@home/x",
    "/run/@",
    "/" + "a" * 201,
    "/" + "é" * 101,
    "/" + "/".join("a" * 100 for _ in range(9)),
    "../../etc/passwd",
    "/../../etc/passwd",
    "file:///etc/passwd",
]


@pytest.mark.parametrize("path", BAD_PATHS)
@pytest.mark.usefixtures("nothing_changes")
def test_a_bad_path_is_refused_through_every_parameter(http: httpx.Client, path: str) -> None:
    join = {"token": "12345678", "ordinal": 0, "rank": 0, "world_size": 1, "size_bytes": 100}
    for kind in ("checkpoint", "file", "folder"):
        refused(http.post("/v1/attempts", json={"path": path, "kind": kind} | join), InvalidInput)
    refused(http.delete("/v1/entries", params={"path": path, "recursive": "true"}), InvalidInput if path != "/" else CkptStoreError)
    if path in ("/", "/run/"):  # these name a folder where a folder is meant
        return
    for route in ("usage", "entries"):
        refused(http.get(f"/v1/{route}", params={"path": path}), InvalidInput)
    if path == "/run/@latest":  # a question that the store answers
        assert http.post("/v1/verify", params={"path": path}).text.count('"problem":null') > 2
        return
    refused(http.post("/v1/verify", params={"path": path}), InvalidInput)
    for route in ("publications", "entry"):
        refused(http.get(f"/v1/{route}", params={"path": path}), InvalidInput)


@pytest.mark.usefixtures("nothing_changes")
def test_a_path_that_is_taken_is_refused_by_its_reason(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, error in {
        "/run/step-1": AlreadyExists,
        "/run/note": AlreadyExists,
        "/run": PathConflict,
        "/run/step-1/inside": PathConflict,
        "/run/note/below": PathConflict,
        "/run/step-1/deep/inside": PathConflict,
    }.items():
        with pytest.raises(error):
            store.save(path, {"w": np.zeros(10)})
        with pytest.raises(error):
            store.put(tmp_path / "file", path, timeout_s=60)
    for path in ("/run", "/run/step-1/inside", "/run/note/below"):
        with pytest.raises(PathConflict):
            store.save(path, {"w": np.zeros(10)}, replace=True)


@pytest.mark.parametrize("name", ["", "/abs", "../x", "a/../../x", "a//b", "a/", ".", "a\0b", "@latest", "a" * 201, "a/" * 400 + "a"])
@pytest.mark.usefixtures("nothing_changes")
def test_a_file_of_a_put_cannot_escape_its_folder(http: httpx.Client, name: str) -> None:
    message = {"path": "/run/put", "token": f"token-{name[:9]!a}", "ordinal": 0, "rank": 0, "world_size": 1, "kind": "folder"}
    attempt_id = http.post("/v1/attempts", json=message).json()["attempt_id"]
    refused(http.put(f"/v1/attempts/{attempt_id}/files", params={"name": name}, content=b"x"), InvalidInput)
    assert http.post(f"/v1/attempts/{attempt_id}/abort", json={"reason": "done"}).json()["state"] == "aborted"


def test_replacing_is_seen_as_the_old_or_the_new_and_never_as_neither(daemon: tuple[DaemonProcess, str], store: Store) -> None:
    store.save("/swap/x", {"w": np.full(200_000, 0)}).wait("nvme", timeout_s=60)
    stop, wrong, seen = threading.Event(), [], set()

    def read() -> None:
        with ckptstore.connect(daemon[1], token=TOKEN) as reader:
            while not stop.is_set():
                try:
                    values = np.unique(reader.load("/swap/x")["w"])
                    names = [entry.name for entry in reader.ls("/swap")]
                except CkptStoreError as error:
                    wrong.append(repr(error))
                    return
                seen.add(int(values[0]))
                if len(values) != 1 or names != ["x"]:
                    wrong.append(f"{values} {names}")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for version in range(1, 15):
        store.save("/swap/x", {"w": np.full(200_000, version)}, replace=True).wait("nvme", timeout_s=60)
    stop.set()
    for reader in readers:
        reader.join(timeout=60)
    assert wrong == []
    assert len(seen) > 1
    store.rm("/swap", recursive=True)
    home = daemon[0].home  # the next test compares files: what was replaced and removed must be gone by then
    left = ("*/tombstones/*", "*/objects/swap/**/*", "*/tmp/*")
    until("its bytes are gone", lambda: not [path for pattern in left for path in home.glob(pattern) if path.is_file()])


# --- who, and how much ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_changes")
def test_without_the_right_token_nothing_is_told(daemon: tuple[DaemonProcess, str]) -> None:
    process, url = daemon
    secrets = ["hostile-secret-4711", f"{TOKEN}x", TOKEN[:-1], TOKEN.upper(), "é" * 20]
    headers = [{}, {"authorization": ""}, {"authorization": TOKEN}, {"authorization": f"Basic {TOKEN}"}]
    headers += [{"authorization": f"Bearer {secret}".encode()} for secret in secrets]
    routes = ["/v1/hello", "/v1/status", "/v1/entries", "/metrics", "/openapi.json", "/docs", "/nothing"]
    routes += ["/v1/publications?path=/run/step-1", "/v1/entry?path=/run/note"]
    with httpx.Client(base_url=url) as client:
        for header in headers:
            for route in routes:
                response = client.get(route, headers=header)  # type: ignore[arg-type]
                assert response.status_code == 401
                assert response.json()["error"] == "unauthorized"
                assert "step-1" not in response.json()["why"]
            assert client.delete("/v1/entries", params={"path": "/run/note"}, headers=header).status_code == 401  # type: ignore[arg-type]
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/hello", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    written = process.log() + "".join(path.read_text("utf-8", "replace") for path in process.home.glob("*.log"))
    assert not any(secret in written for secret in ["hostile-secret-4711", TOKEN])


@pytest.mark.usefixtures("nothing_changes")
def test_a_daemon_is_not_stopped_over_the_network(http: httpx.Client, daemon: tuple[DaemonProcess, str]) -> None:
    assert http.post("/v1/stop").status_code == 401
    assert daemon[0].exit_code() is None


@pytest.mark.usefixtures("nothing_changes")
def test_an_oversized_or_unmeasured_body_is_refused_before_it_is_read(http: httpx.Client, daemon: tuple[DaemonProcess, str]) -> None:
    refused(http.post("/v1/attempts", content=b" " * (MAX_REQUEST_BYTES + 1)), InvalidInput)
    refused(http.post("/v1/attempts", content=iter([b"{", b"}"])), InvalidInput)
    refused(http.put(f"/v1/attempts/{NOBODY}/files", params={"name": "x"}, content=b"x" * 1000), NotFound)
    message = {"path": "/run/long", "token": "12345678", "ordinal": 0, "rank": 0, "world_size": 1, "kind": "folder"}
    attempt_id = http.post("/v1/attempts", json=message).json()["attempt_id"]
    url = f"/v1/attempts/{attempt_id}/files"
    refused(http.put(url, params={"name": "x"}, content=iter([b"x"])), InvalidInput)
    for length in (str(1 << 60), "9" * 30, "-1", "1e3", "\xb2"):
        head = [f"PUT {url}?name=x HTTP/1.1", "host: x", f"authorization: Bearer {TOKEN}", f"content-length: {length}"]
        head.append(f"{SESSION_HEADER}: {http.headers[SESSION_HEADER]}")
        status = first_line(daemon[1], "\r\n".join([*head, "", ""]).encode("latin-1"))
        assert status.split()[1] in ("400", "507"), f"{length}: {status}"
    http.post(f"/v1/attempts/{attempt_id}/abort", json={"reason": "done"})


def first_line(url: str, request: bytes) -> str:
    """What answers a request that no client library would send."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        return connection.recv(1000).decode("latin-1").partition("\r\n")[0]


def test_http_2_without_a_length_is_no_way_around_the_limit(daemon: tuple[DaemonProcess, str]) -> None:
    answer = first_line(daemon[1], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    assert answer == "" or answer.startswith("HTTP/1.1 4")


# --- values --------------------------------------------------------------------------------------------------------------------------

BAD_BODIES: list[bytes] = [
    b"",
    b"null",
    b"[]",
    b"{",
    b"\xff\xfe",
    b'{"a":' * 5000,
    b"[" * 100_000,
    b'{"path":"/run/x","token":"short","ordinal":0,"rank":0,"world_size":1}',
    b'{"path":"/run/x","token":"12345678","ordinal":-1,"rank":0,"world_size":1}',
    b'{"path":"/run/x","token":"12345678","ordinal":1e400,"rank":0,"world_size":1}',
    b'{"path":"/run/x","token":"12345678","ordinal":99999999999999999999,"rank":0,"world_size":1}',
    b'{"path":"/run/x","token":"12345678","ordinal":0,"rank":1,"world_size":1}',
    b'{"path":"/run/x","token":"12345678","ordinal":0,"rank":-1,"world_size":1}',
    b'{"path":"/run/x","token":"12345678","ordinal":0,"rank":0,"world_size":0}',
    b'{"path":"/run/x","token":"12345678","ordinal":0,"rank":0,"world_size":99999999}',
    b'{"path":"/run/x","token":"12345678","ordinal":0,"rank":0,"world_size":2,"kind":"file"}',
    b'{"path":"/run/x","token":"12345678","ordinal":0,"rank":0,"world_size":1,"kind":"device"}',
    b'{"path":"/run/x","token":"12345678","ordinal":0,"rank":0,"world_size":1,"step":99999999999999999999}',
    b'{"path":"/run/x","token":"12345678","ordinal":0,"rank":0,"world_size":1,"metadata":{"a":NaN}}',
    b'{"path":"/run/x","token":"12345678","ordinal":0,"rank":0,"world_size":1,"metadata":{"a":"\\ud800"}}',
    b'{"path":"/run/x","token":"1234567\\u0000","ordinal":0,"rank":0,"world_size":1}',
    b'{"path":"/run/\\ud800","token":"12345678","ordinal":0,"rank":0,"world_size":1}',
    b'{"path":["/run/x"],"token":"12345678","ordinal":0,"rank":0,"world_size":1}',
    b'{"path":"/run/x","token":"12345678","ordinal":0,"rank":0,"world_size":1,"unknown":1}',
    b'{"path":"/run/x","token":"12345678","ordinal":0,"rank":0,"world_size":1,"on_busy":"explode"}',
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
@pytest.mark.usefixtures("nothing_changes")
def test_a_malformed_body_is_refused_by_the_field_that_is_wrong(http: httpx.Client, body: bytes) -> None:
    refused(http.post("/v1/attempts", content=body, headers={"content-type": "application/json"}), InvalidInput)


@pytest.mark.parametrize(
    ("route", "leaf"),
    [
        ("/v1/attempts/x", InvalidInput),
        (f"/v1/attempts/{NOBODY}", NotFound),
        (f"/v1/attempts/{NOBODY}?wait=tape", NotFound),
        (f"/v1/attempts/{NOBODY}?timeout_s=-1", InvalidInput),
        (f"/v1/attempts/{NOBODY}?timeout_s=nan", InvalidInput),
        (f"/v1/attempts/{NOBODY}?timeout_s=1e999", InvalidInput),
        (f"/v1/attempts/{NOBODY}?timeout_s=soon", InvalidInput),
        ("/v1/publications/..%2f..%2fetc%2fpasswd", CkptStoreError),
        (f"/v1/publications/{NOBODY.replace('0', 'A')}", InvalidInput),
        (f"/v1/publications/{NOBODY}/files?rank=-1", InvalidInput),
        (f"/v1/publications/{NOBODY}/files?rank=99999999999999999999", InvalidInput),
        (f"/v1/publications/{NOBODY}/files?limit=0", InvalidInput),
        (f"/v1/publications/{NOBODY}/files?limit=99999999999", InvalidInput),
        (f"/v1/publications/{NOBODY}/files?after=%00", InvalidInput),
        ("/v1/entries?path=/&limit=-1", InvalidInput),
        ("/v1/entries?path=/nothing/here", NotFound),
        ("/v1/entry?path=/nothing", NotFound),
        (f"/v1/objects/{NOBODY}/content", NotFound),
        (f"/v1/objects/{NOBODY}/replicas", NotFound),
        ("/v1/objects/%2e%2e/content", CkptStoreError),
        ("/v1/nothing", NotFound),
        ("/v1/%00", NotFound),
    ],
)
@pytest.mark.usefixtures("nothing_changes")
def test_a_wrong_id_or_parameter_is_refused_by_name(http: httpx.Client, route: str, leaf: type[CkptStoreError]) -> None:
    refused(http.get(route), leaf)


BAD_RANGES = ["bytes=5-2", "bytes=99999999-", "bytes=a-b", "bytes=0-1,3-4", "items=0-1", "bytes=-", "bytes=-0", "bytes=--1"]


@pytest.mark.parametrize("wanted", [*BAD_RANGES, f"bytes={'9' * 5000}-"], ids=lambda wanted: wanted[:20])
@pytest.mark.usefixtures("nothing_changes")
def test_a_range_that_is_none_is_refused(http: httpx.Client, store: Store, wanted: str) -> None:
    publication = store.stat("/run/step-1").publication_id
    object_id = http.get(f"/v1/publications/{publication}/files").json()["files"][0]["object_id"]
    refused(http.get(f"/v1/objects/{object_id}/content", headers={"range": wanted}), InvalidInput)
    assert http.post(f"/v1/objects/{object_id}/damage", json={"tier": "tape", "block": 0}).status_code == 404
    assert http.post(f"/v1/objects/{object_id}/damage", json={"tier": "nvme", "block": 10**6}).status_code == 404
    assert http.post(f"/v1/objects/{object_id}/damage", json={"tier": "nvme", "block": 1 << 80}).status_code == 400


@pytest.mark.usefixtures("nothing_changes")
def test_a_false_report_of_damage_takes_no_replica_out_of_use(http: httpx.Client, store: Store) -> None:
    publication = store.stat("/run/step-1").publication_id
    for file in http.get(f"/v1/publications/{publication}/files").json()["files"]:
        for tier in ("nvme", "pfs", "memory"):
            report = http.post(f"/v1/objects/{file['object_id']}/damage", json={"tier": tier, "block": 0})
            assert {"nvme", "pfs"} <= {replica["tier"] for replica in report.json()["replicas"]}


# --- the page, and requests made from it ---------------------------------------------------------------------------------------------


def test_the_openapi_page_names_every_route_and_the_body_of_every_error(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert {"/v1/attempts", "/v1/entries", "/v1/status", "/v1/objects/{object_id}/content"} <= document["paths"].keys()
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")
    assert http.get("/docs").status_code == 200


def test_requests_that_the_schema_allows_and_some_that_it_does_not_meet_no_fault(
    http: httpx.Client, store: Store, daemon: tuple[DaemonProcess, str]
) -> None:
    """Generated requests to every operation: no 5xx but those that say that something is full or too slow, and error bodies of ours."""
    schema = schemathesis.openapi.from_dict(http.get("/openapi.json").json())
    headers = {"authorization": f"Bearer {TOKEN}", SESSION_HEADER: http.headers[SESSION_HEADER]}
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path in ("/v1/stop", "/v1/verify", "/v1/watch") or (operation.path, operation.method) == ("/v1/entries", "delete"):
            continue

        @settings(max_examples=EXAMPLES, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck))
        def request(case: schemathesis.Case) -> None:
            nonlocal tried
            tried += 1
            answer = case.call(base_url=daemon[1], headers=headers, timeout=60)
            if answer.status_code >= 400 and case.method != "HEAD":  # whose answers have no body
                body = answer.json()
                assert body["error"] in BY_CODE and body["error"] != "internal", body
                assert answer.status_code < 500 or body["error"] in ("tier_full", "busy", "wait_timeout"), body

        given(case=operation.as_strategy())(request)()
    assert tried > 10 * EXAMPLES
    assert daemon[0].exit_code() is None
    assert TOKEN not in daemon[0].log()
    assert np.array_equal(store.load("/run/step-1")["w"], np.arange(1000))
