"""An attached bucket is listed lazily, read on condition of its ETag, with credentials that rotate; an outage takes a bounded time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ckptstore.errors import ConfigInvalid, InvalidInput, NotFound, StaleVersion, TierUnavailable
from ckptstore_bench.services.seaweedfs import SeaweedS3
from ckptstore_server.readers.origin import StreamsParts
from ckptstore_server.readers.origins.s3 import S3Storage
from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.s3_options import read_s3_place
from ckptstore_tiers.s3_reader import S3Reader
from tests.readers.places import Inside, content_of, inside
from tests.services.s3_fault_proxy import Fault, S3FaultProxy
from tests.until import until

BUCKET, ACCESS, SECRET = "models", "AKTHEACCESSKEY", "thesecretthatnobodymaysee"
QUICK = {"retry_for_s": "1", "read_timeout_s": "1.5", "connect_timeout_s": "1"}
EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
LARGE = os.urandom(5 * BLOCK_BYTES + 123)


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedS3]:
    with SeaweedS3(tmp_path_factory.mktemp("seaweed"), access_key=ACCESS, secret_key=SECRET) as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture
def s3(seaweed: SeaweedS3, request: pytest.FixtureRequest) -> Any:
    """A client that puts below a prefix of this test's own."""
    return Upstream(seaweed.client(), f"t{abs(hash(request.node.name)):x}")


class Upstream:
    def __init__(self, client: Any, prefix: str) -> None:
        self.client = client
        self.prefix = prefix
        self.url = f"s3://{BUCKET}/{prefix}"

    def put(self, key: str, body: bytes = b"x") -> None:
        self.client.put_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}", Body=body)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}")


@pytest.fixture(autouse=True)
def profiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of profiles; the environment holds no credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    write_profile(file, ACCESS, SECRET)
    return file


def write_profile(file: Path, access: str, secret: str) -> None:
    file.write_text(f"[readers]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n", "utf-8")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    with inside(tmp_path_factory.mktemp("store") / "home") as opened:
        yield opened


@pytest.fixture
def tree(store: Inside) -> Iterator[Inside]:
    """Nothing is attached in it, before and behind each test."""
    yield store
    for attachment in store.run(store.services.attached.all()):
        store.run(store.services.attached.detach(attachment.path))


@pytest.fixture
def proxy(seaweed: SeaweedS3) -> Iterator[S3FaultProxy]:
    with S3FaultProxy(seaweed.endpoint_url) as proxy:
        yield proxy


def attach(tree: Inside, url: str, endpoint: str, *, refresh_s: float = 0.0, **options: str) -> None:
    tree.attach(url, "/m", refresh_s=refresh_s, credentials="readers", options={"endpoint_url": endpoint} | QUICK | options)


# --- what is there -------------------------------------------------------------------------------------------------------------------


def test_keys_are_files_and_their_slashes_folders(tree: Inside, s3: Upstream, seaweed: SeaweedS3) -> None:
    for key in ("org/name/config.json", "org/name/model.safetensors", "org/other", "read me é.txt", "a+b&c=d%5C.bin"):
        s3.put(key, key.encode())
    attach(tree, s3.url, seaweed.endpoint_url)
    assert tree.names("/m") == ["a+b&c=d%5C.bin", "org", "read me é.txt"]
    assert tree.names("/m/org") == ["name", "other"]
    assert [tree.look(path).kind for path in ("/m", "/m/org", "/m/org/name", "/m/org/other")] == ["folder"] * 3 + ["file"]
    file = tree.look("/m/org/name/config.json")
    assert (file.size_bytes, file.origin, file.best_effort) == (20, f"{s3.url}/org/name/config.json", False)
    assert time.time() - file.modified_s < 300
    listed = tree.run(tree.services.tree.list("/m/org/name")).entries
    assert listed[0] == file
    for key in ("read me é.txt", "a+b&c=d%5C.bin"):
        assert tree.read(f"/m/{key}") == key.encode()
    for missing in ("/m/none", "/m/or", "/m/org/nam", "/m/org/other/below", "/m/org/name/config.json/x"):
        with pytest.raises(NotFound):
            tree.look(missing)
        with pytest.raises(NotFound):
            tree.names(missing)


@pytest.mark.parametrize(
    ("offset", "stop"), [(0, len(LARGE)), (1, 2), (BLOCK_BYTES - 1, 3 * BLOCK_BYTES + 1), (len(LARGE) - 1, len(LARGE)), (9, 9)]
)
def test_any_range_is_what_was_stored(tree: Inside, s3: Upstream, seaweed: SeaweedS3, offset: int, stop: int) -> None:
    s3.put("large", LARGE)
    s3.put("empty", b"")
    attach(tree, s3.url, seaweed.endpoint_url)
    file, origin = tree.open("/m/large")
    assert content_of(file, origin, offset, stop) == LARGE[offset:stop]
    assert tree.read("/m/empty") == b""


def test_parts_come_by_one_request_which_goes_on_where_it_broke(tree: Inside, s3: Upstream, proxy: S3FaultProxy) -> None:
    s3.put("large", LARGE)
    attach(tree, s3.url, proxy.endpoint_url)
    file, origin = tree.open("/m/large")
    assert isinstance(origin, StreamsParts)
    start, buffer, found = BLOCK_BYTES // 2, memoryview(bytearray(BLOCK_BYTES)), bytearray()

    def parts() -> Iterator[memoryview]:
        for offset in range(start, len(LARGE), BLOCK_BYTES):
            yield (view := buffer[: len(LARGE) - offset])
            found.extend(view)

    proxy.add(Fault(method="GET", contains="/large", times=1, truncate_answer_bytes=BLOCK_BYTES + 5000))
    origin.read_parts(file, start, len(LARGE) - start, parts())
    assert found == LARGE[start:]
    assert len([target for method, target in proxy.requests if method == "GET" and "/large" in target]) == 2
    s3.put("large", LARGE[::-1])
    found.clear()
    with pytest.raises(StaleVersion):
        origin.read_parts(file, start, len(LARGE) - start, parts())
    assert not found


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_a_listing_has_every_name_once_whatever_the_page(tree: Inside, s3: Upstream, seaweed: SeaweedS3, limit: int) -> None:
    keys = ["a", "a-b", "a-b/x", "a.b", "ab", "b/1", "b/2", "b/3", "b-", "b0", "c/d/e", "é", "z/y"]
    for key in keys:
        s3.put(key)
    attach(tree, s3.url, seaweed.endpoint_url)
    names = tree.names("/m", limit)
    assert sorted(names) == sorted({key.partition("/")[0] for key in keys})
    assert len(names) == len(set(names))


def test_a_bucket_or_credentials_that_are_wrong_are_refused_when_it_is_attached(tree: Inside, seaweed: SeaweedS3, profiles: Path) -> None:
    with pytest.raises(TierUnavailable, match="bucket"):
        attach(tree, "s3://nosuchbucket", seaweed.endpoint_url)
    with pytest.raises(ConfigInvalid, match="nobody"):
        tree.attach("s3://b", "/m", credentials="nobody")
    for url, options in (("s3://", {}), ("s3://user:secret@bucket", {}), ("s3://b", {"colour": "red"}), ("s3://b?x", {})):
        with pytest.raises(InvalidInput) as refusal:
            tree.attach(url, "/m", options=options)
        assert "secret" not in refusal.value.why
    write_profile(profiles, ACCESS, "wrong")
    with pytest.raises(TierUnavailable, match="credentials"):
        attach(tree, f"s3://{BUCKET}", seaweed.endpoint_url)
    assert tree.run(tree.services.attached.all()) == []


# --- one version -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["replaced", "replaced by as many bytes", "deleted"])
def test_what_was_opened_is_not_mixed_with_what_is_there_now(tree: Inside, s3: Upstream, seaweed: SeaweedS3, change: str) -> None:
    s3.put("f", LARGE)
    attach(tree, s3.url, seaweed.endpoint_url, refresh_s=3600)
    opened, origin = tree.open("/m/f")
    assert content_of(opened, origin, 5, 10) == LARGE[5:10]
    new = LARGE[::-1] if change != "replaced" else b"shorter"
    s3.delete("f") if change == "deleted" else s3.put("f", new)
    with pytest.raises(StaleVersion):
        content_of(opened, origin, 5, 10)
    with pytest.raises(StaleVersion):
        tree.open("/m/f", opened.version)
    if change == "deleted":
        with pytest.raises(NotFound):
            tree.open("/m/f")
    else:
        assert tree.read("/m/f") == new
        assert tree.open("/m/f")[0].version != opened.version


def test_a_reader_in_the_middle_of_a_file_that_is_replaced_gets_no_byte_of_the_new_one(
    tree: Inside, s3: Upstream, seaweed: SeaweedS3
) -> None:
    bodies = [bytes([number]) * (2 * BLOCK_BYTES) for number in range(1, 5)]
    s3.put("f", bodies[0])
    attach(tree, s3.url, seaweed.endpoint_url)
    for old, new in pairwise(bodies):
        opened, origin = tree.open("/m/f")
        assert content_of(opened, origin, 0, BLOCK_BYTES) == old[:BLOCK_BYTES]
        with ThreadPoolExecutor(4) as executor:
            racing = [executor.submit(content_of, opened, origin, start, start + BLOCK_BYTES) for start in range(0, BLOCK_BYTES, 1 << 20)]
            s3.put("f", new)
            for read in racing:
                try:
                    assert read.result() == old[:BLOCK_BYTES]
                except StaleVersion:
                    continue
        with pytest.raises(StaleVersion):
            content_of(opened, origin, BLOCK_BYTES)
    assert tree.read("/m/f") == bodies[-1]


def test_a_server_that_ignores_conditions_is_found_out_by_its_etag(
    tree: Inside, s3: Upstream, seaweed: SeaweedS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unconditional(S3Reader):
        def __init__(self, *arguments: Any, if_match: bool) -> None:
            super().__init__(*arguments, if_match=False)

    monkeypatch.setattr("ckptstore_server.readers.origins.s3.S3Reader", Unconditional)
    s3.put("f", b"old")
    attach(tree, s3.url, seaweed.endpoint_url)
    opened, origin = tree.open("/m/f")
    assert content_of(opened, origin) == b"old"
    s3.put("f", b"new")
    with pytest.raises(StaleVersion):
        content_of(opened, origin)


def test_every_get_of_a_file_is_conditional(tree: Inside, s3: Upstream, proxy: S3FaultProxy) -> None:
    s3.put("f", b"content")
    attach(tree, s3.url, proxy.endpoint_url)
    opened, origin = tree.open("/m/f")
    etag = opened.upstream
    proxy.clear()
    proxy.add(Fault(method="GET", header=etag.strip('"'), status=412, times=1))
    with pytest.raises(StaleVersion):
        content_of(opened, origin)


# --- what it costs ---------------------------------------------------------------------------------------------------------------------


def test_looks_are_answered_from_what_a_listing_said_until_refresh(tree: Inside, s3: Upstream, proxy: S3FaultProxy) -> None:
    for number in range(20):
        s3.put(f"d/f{number}")
    attach(tree, s3.url, proxy.endpoint_url, refresh_s=3600)
    proxy.clear()
    assert len(tree.names("/m/d")) == 20
    for number in range(20):
        tree.look(f"/m/d/f{number}")
        tree.open(f"/m/d/f{number}")
    for _ in range(3):
        with pytest.raises(NotFound):
            tree.look("/m/d/none")
    methods = [method for method, _ in proxy.requests]
    assert methods.count("GET") == 2, proxy.requests  # the listing, and whether "none" is a folder
    assert methods.count("HEAD") == 1, proxy.requests


def test_without_refresh_every_look_is_new(tree: Inside, s3: Upstream, seaweed: SeaweedS3) -> None:
    attach(tree, s3.url, seaweed.endpoint_url, refresh_s=0)
    with pytest.raises(NotFound):
        tree.look("/m/f")
    s3.put("f", b"1")
    assert tree.look("/m/f").size_bytes == 1
    s3.put("f", b"22")
    assert tree.look("/m/f").size_bytes == 2
    assert tree.names("/m") == ["f"]


def test_a_million_keys_are_listed_a_page_at_a_time_and_a_look_lists_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of a million keys would take an hour to fill: the one that is asked here makes its answers up."""
    storage, server = made_up(monkeypatch, keys=1_000_000)
    page = storage.page("", "", 1000)
    assert len(page.entries) == 1000
    assert server.keys_given == 1000
    seen, after, pages = len(page.entries), page.after, 1
    while after is not None and pages < 120:
        page = storage.page("", after, 1000)
        assert page.entries[0].name == f"f{seen:07d}"
        seen, after, pages = seen + len(page.entries), page.after, pages + 1
    assert seen == 120_000
    assert server.requests == pages
    server.requests = 0
    assert storage.look("f0999999").size_bytes == 1
    assert server.requests == 1


def test_keys_that_no_path_can_name_are_left_out_counted_and_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    storage, server = made_up(monkeypatch, keys=0)
    bad = ["..", "../etc/passwd", "./x", "/absolute", "//x", "@latest", "new\nline", "nul\x01", "x" * 201, "../../../x", "d/../../y"]
    server.listing = sorted([*bad, "", "good", "d/good", "also", "also/inside"])
    page = storage.page("", "", 1000)
    assert [entry.name for entry in page.entries] == ["also", "d", "good"]
    assert [entry.is_folder for entry in page.entries] == [False, True, False]
    folders = {name.partition("/")[0] for name in bad if "/" in name and not name.startswith("d/")} | {"also"}
    assert page.skipped == len(folders | {name for name in bad if "/" not in name} - {".."}) + 1
    assert [entry.name for entry in storage.page("d", "", 1000).entries] == ["d/good"]


def test_a_folder_that_is_a_key_too_is_the_file_on_whatever_page(monkeypatch: pytest.MonkeyPatch) -> None:
    storage, server = made_up(monkeypatch, keys=0)
    server.listing = sorted(["a", "a-1", "a-2", "a-3", "a/x", "b"])
    names, after = [], ""
    while after is not None:
        page = storage.page("", after, 2)
        names += [(entry.name, entry.is_folder) for entry in page.entries]
        after = page.after  # type: ignore[assignment]
    assert names == [("a", False), ("a-1", False), ("a-2", False), ("a-3", False), ("b", False)]


class MadeUp:
    """Answers like S3's, of a bucket that is not."""

    def __init__(self, keys: int) -> None:
        self.keys = keys
        self.listing: list[str] = []
        self.requests = 0
        self.keys_given = 0

    def ask(self, operation: str, key: str, method: str, **parameters: Any) -> dict[str, Any]:
        from datetime import datetime

        self.requests += 1
        now = datetime.now().astimezone()
        if method == "head_object":
            if parameters["Key"] not in self.listing and not parameters["Key"].startswith("f0"):
                raise NotFound("no", operation=operation, subject=key)
            return {"ContentLength": 1, "ETag": '"e"', "LastModified": now}
        prefix, limit = parameters["Prefix"], parameters["MaxKeys"]
        start = int(parameters.get("ContinuationToken", 0))
        rolled: list[str] = []
        for name in self.listing:
            if name.startswith(prefix):
                head, slash, _ = name[len(prefix) :].partition("/")
                if (shown := prefix + head + slash) not in rolled:
                    rolled.append(shown)
        count = self.keys or len(rolled)
        shown = [f"f{number:07d}" for number in range(start, min(count, start + limit))] if self.keys else rolled[start : start + limit]
        self.keys_given += len(shown)
        page: dict[str, Any] = {"IsTruncated": start + limit < count, "NextContinuationToken": str(start + limit)}
        page["Contents"] = [{"Key": k, "Size": 1, "ETag": '"e"', "LastModified": now} for k in shown if not k.endswith("/")]
        page["CommonPrefixes"] = [{"Prefix": k} for k in shown if k.endswith("/")]
        return page


def made_up(monkeypatch: pytest.MonkeyPatch, *, keys: int) -> tuple[S3Storage, MadeUp]:
    place = read_s3_place("s3://bucket", {"endpoint_url": "http://127.0.0.1:1"}, operation="attach", subject="/m")
    storage, server = S3Storage(*place), MadeUp(keys)
    monkeypatch.setattr(storage._bucket, "ask", server.ask)
    return storage, server


# --- outages ---------------------------------------------------------------------------------------------------------------------------


def test_credentials_that_rotate_in_the_profile_are_taken_up_without_attaching_again(
    tree: Inside, s3: Upstream, seaweed: SeaweedS3, proxy: S3FaultProxy, profiles: Path
) -> None:
    s3.put("f", b"content")
    attach(tree, s3.url, proxy.endpoint_url)
    opened, origin = tree.open("/m/f")
    write_profile(profiles, "AKOLD", "expired")
    proxy.add(Fault(header=f"Credential={ACCESS}/", status=403, body=EXPIRED))
    with pytest.raises(TierUnavailable, match="credentials"):
        content_of(opened, origin)
    proxy.clear()
    write_profile(profiles, ACCESS, SECRET)
    assert content_of(opened, origin) == b"content"
    assert tree.look("/m/f").size_bytes == 7


@pytest.mark.parametrize("status", [429, 503, 500])
def test_a_server_that_has_too_much_to_do_is_asked_again(tree: Inside, s3: Upstream, proxy: S3FaultProxy, status: int) -> None:
    s3.put("f", b"content")
    attach(tree, s3.url, proxy.endpoint_url)
    for method in ("HEAD", "GET"):
        proxy.add(Fault(method=method, status=status, times=2))
    assert tree.read("/m/f") == b"content"
    assert tree.names("/m") == ["f"]


@pytest.mark.parametrize("outage", ["reset", "silent", "busy"])
def test_an_outage_is_told_in_bounded_time_to_all_who_ask_and_ends_by_itself(
    tree: Inside, s3: Upstream, proxy: S3FaultProxy, outage: str
) -> None:
    for number in range(30):
        s3.put(f"f{number}", b"content")
    attach(tree, s3.url, proxy.endpoint_url, refresh_s=0)
    opened, origin = tree.open("/m/f0")
    assert tree.look("/m/f1").size_bytes == 7
    if outage == "reset":
        proxy.down()
    else:
        proxy.add(Fault(hang=True) if outage == "silent" else Fault(status=503))
    before = len(proxy.requests)
    with ThreadPoolExecutor(20) as executor:
        reads = [executor.submit(content_of, opened, origin) for _ in range(20)]
        for number in range(10, 30):
            with pytest.raises(TierUnavailable):
                tree.look(f"/m/f{number}")
        assert tree.look("/m/f1").size_bytes == 7  # what was known goes on
        assert tree.open("/m/f0")[0] == opened
        for read in reads:
            with pytest.raises(TierUnavailable):
                read.result()
    # Forty questions, each of which would be tried several times, for some seconds each.
    assert len(proxy.requests) - before < 120
    proxy.up()
    proxy.clear()

    def back() -> bytes:
        try:
            return content_of(opened, origin)
        except TierUnavailable:
            return b""

    assert until("the bucket answers again", back, timeout_s=60) == b"content"
    assert tree.look("/m/f20").size_bytes == 7
