"""Whatever an S3 server or the wire does, nothing is reported as stored that is not, and the same call succeeds when the fault has gone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from moto.server import ThreadedMotoServer

from ckptstore.config import TierSettings
from ckptstore.errors import AlreadyExists, ChecksumMismatch, CkptStoreError, NotFound, TierFull, TierUnavailable
from ckptstore.paths import new_id
from ckptstore_bench.services.seaweedfs import SeaweedS3
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests
from ckptstore_tiers.interface import Tier
from ckptstore_tiers.object_tier import open_object_tier
from ckptstore_tiers.read_ahead import blocks_of
from ckptstore_tiers.s3_probe import PROBE_FOLDER
from ckptstore_tiers.sources import MemorySource
from ckptstore_tiers.transfer_figures import ReportsTransfers
from tests.contract.tier_contract import assert_nothing_visible, content, keys, new_key, stored
from tests.services.role_server import role_server
from tests.services.s3_fault_proxy import Fault, S3FaultProxy

BUCKET = "checkpoints"
ACCESS, SECRET = "AKTHEACCESSKEY", "thesecretthatnobodymaysee"
SMALL, LARGE = content(BLOCK_BYTES + 17), content(6 * BLOCK_BYTES + 17)
#: Short, so that a fault that stays is given up on soon; long enough for several tries.
QUICK = {"part_size": "8MiB", "retry_for_s": 1.0, "read_timeout_s": 3.0}


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedS3]:
    with SeaweedS3(tmp_path_factory.mktemp("seaweed"), access_key=ACCESS, secret_key=SECRET) as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def open_tier(endpoint_url: str, bucket: str = BUCKET, **options: Any) -> Tier:
    options = {"endpoint_url": endpoint_url} | QUICK | options
    return open_object_tier(
        TierSettings(name="object", kind="object", url=f"s3://{bucket}/{new_id()}", options=options)
    )


@pytest.fixture
def tier(proxy: S3FaultProxy) -> Iterator[Tier]:
    tier = open_tier(proxy.endpoint_url)
    assert "honoured" in tier.facts.details["conditional_complete"]
    proxy.clear()
    yield tier
    tier.close()


def unfinished_uploads(seaweed: SeaweedS3) -> list[str]:
    """The keys of uploads that were begun and not ended, but for those of a probe that an outage interrupted."""
    found = seaweed.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    return [upload["Key"] for upload in found if PROBE_FOLDER not in upload["Key"]]


LASTING = {
    "hang": Fault(hang=True),
    "500": Fault(status=500),
    "503_slow_down": Fault(
        status=503, body=b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"
    ),
    "reset": Fault(reset_after_bytes=0, lose_answer=True),
}


SPOILT_PUTS = {
    "never_answered": Fault(method="PUT", hang=True),
    "500": Fault(method="PUT", status=500),
    "503": Fault(method="PUT", status=503),
    "reset_in_the_body": Fault(method="PUT", reset_after_bytes=1_000_000),
    "always_wrong_bytes": Fault(method="PUT", flip_request_byte=1234),
}


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "in_parts"])
@pytest.mark.parametrize("name", SPOILT_PUTS)
def test_a_put_that_never_gets_through_stores_nothing(
    proxy: S3FaultProxy, seaweed: SeaweedS3, tier: Tier, name: str, data: bytes
) -> None:
    key = new_key()
    proxy.add(SPOILT_PUTS[name].again())
    with pytest.raises(TierUnavailable) as caught:
        tier.put(key, MemorySource(data))
    assert caught.value.subject == key
    assert unfinished_uploads(seaweed) == []
    proxy.clear()
    assert_nothing_visible(tier, key)
    assert tier.put(key, MemorySource(data)) == BlockDigests.of(data)
    assert stored(tier, key) == data


def test_an_upload_that_could_not_even_be_aborted_is_swept_later(
    proxy: S3FaultProxy, seaweed: SeaweedS3, tier: Tier
) -> None:
    key = new_key()
    proxy.add(Fault(contains="uploadId=", status=500))
    with pytest.raises(TierUnavailable):
        tier.put(key, MemorySource(LARGE))
    proxy.clear()
    assert len(unfinished_uploads(seaweed)) == 1
    assert_nothing_visible(tier, key)
    assert tier.sweep([key.rpartition("~")[2]]) == 1
    assert unfinished_uploads(seaweed) == []


@pytest.mark.parametrize(
    "fault", [Fault(contains="uploadId=", status=500), Fault(contains="?uploads", lose_answer=True)], ids=["no abort", "no answer"]
)
def test_an_upload_that_could_not_be_taken_back_goes_before_the_put_is_tried_again(
    proxy: S3FaultProxy, seaweed: SeaweedS3, tier: Tier, fault: Fault
) -> None:
    key = new_key()
    proxy.add(fault.again())
    with pytest.raises(TierUnavailable):
        tier.put(key, MemorySource(LARGE))
    proxy.clear()
    assert len(unfinished_uploads(seaweed)) >= 1
    tier.put(key, MemorySource(LARGE))
    assert unfinished_uploads(seaweed) == []
    assert stored(tier, key) == LARGE


def test_an_outage_during_the_probe_is_not_taken_for_a_server_that_checks(proxy: S3FaultProxy) -> None:
    for answered in range(1, 12, 2):
        proxy.clear()
        proxy.add(Fault(times=answered))
        proxy.add(Fault(status=500))
        tier = open_tier(proxy.endpoint_url)
        assert tier.facts.details["probe"].startswith("not answered yet"), answered
        proxy.clear()
        tier.put_document("records/x", b"{}")
        assert tier.facts.details["checksum"] == "crc32, checked by the server"
        tier.close()


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "in_parts"])
@pytest.mark.parametrize("name", [*LASTING, "down"])
def test_a_store_that_is_gone_stores_nothing_until_it_is_back(
    proxy: S3FaultProxy, tier: Tier, name: str, data: bytes
) -> None:
    key = new_key()
    if name == "down":
        proxy.down()
    else:
        proxy.add(LASTING[name].again())
    calls: list[Callable[[], object]] = [
        lambda: tier.put(key, MemorySource(data)),
        lambda: keys(tier),
        lambda: tier.put_document("records/x", b"{}"),
        lambda: tier.delete(key),
    ]
    for call in calls[: 1 if name == "hang" else None]:  # each one waits for the read timeout there
        with pytest.raises(TierUnavailable) as caught:
            call()
        assert caught.value.tier == "object"
        assert BUCKET in str(caught.value)
    proxy.up()
    proxy.clear()
    assert_nothing_visible(tier, key)
    assert tier.put(key, MemorySource(data)) == BlockDigests.of(data)
    assert stored(tier, key) == data


PASSING = {
    "500": Fault(status=500, times=1),
    "503": Fault(status=503, times=1),
    "reset_in_the_body": Fault(method="PUT", reset_after_bytes=1_000_000, times=1),
    "wrong_bytes": Fault(method="PUT", flip_request_byte=777_777, times=1),
    "answer_to_the_put_lost": Fault(method="PUT", lose_answer=True, times=1),
    "answer_to_the_complete_lost": Fault(method="POST", contains="uploadId=", lose_answer=True, times=1),
    "error_in_a_200": Fault(
        method="POST",
        contains="uploadId=",
        status=200,
        body=b'<?xml version="1.0"?><Error><Code>InternalError</Code><Message>again</Message></Error>',
        times=1,
    ),
}


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "in_parts"])
@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_passes_is_not_seen_by_the_caller(
    proxy: S3FaultProxy, seaweed: SeaweedS3, tier: Tier, name: str, data: bytes
) -> None:
    key = new_key()
    proxy.add(PASSING[name].again())
    assert tier.put(key, MemorySource(data)) == BlockDigests.of(data)
    assert stored(tier, key) == data
    assert unfinished_uploads(seaweed) == []


def test_a_part_that_always_arrives_wrong_is_refused_by_the_server(
    proxy: S3FaultProxy, seaweed: SeaweedS3, tier: Tier
) -> None:
    key = new_key()
    proxy.add(Fault(method="PUT", contains="partNumber=2", flip_request_byte=1234))
    with pytest.raises(TierUnavailable):
        tier.put(key, MemorySource(LARGE))
    assert unfinished_uploads(seaweed) == []
    proxy.clear()
    assert_nothing_visible(tier, key)
    tier.put(key, MemorySource(LARGE))
    assert stored(tier, key) == LARGE


def test_an_error_in_the_body_of_every_200_is_a_failed_put(proxy: S3FaultProxy, seaweed: SeaweedS3, tier: Tier) -> None:
    key = new_key()
    proxy.add(Fault(method="POST", contains="uploadId=", status=200, body=PASSING["error_in_a_200"].body))
    with pytest.raises(TierUnavailable):
        tier.put(key, MemorySource(LARGE))
    assert unfinished_uploads(seaweed) == []
    proxy.clear()
    assert_nothing_visible(tier, key)
    tier.put(key, MemorySource(LARGE))
    assert stored(tier, key) == LARGE


def test_a_full_store_is_tier_full_and_not_retried(proxy: S3FaultProxy, tier: Tier) -> None:
    key = new_key()
    proxy.add(
        Fault(method="PUT", status=507, body=b"<Error><Code>InsufficientStorage</Code><Message>full</Message></Error>")
    )
    with pytest.raises(TierFull):
        tier.put(key, MemorySource(SMALL))
    assert [method for method, _ in proxy.requests].count("PUT") == 1
    proxy.clear()
    tier.put(key, MemorySource(SMALL))
    assert stored(tier, key) == SMALL


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_document_whose_answer_was_lost_is_known_as_ours(proxy: S3FaultProxy, tier: Tier, exclusive: bool) -> None:
    proxy.add(Fault(method="PUT", lose_answer=True, times=1))
    tier.put_document("store.json", b"ours", exclusive=exclusive)
    assert tier.get_document("store.json") == b"ours"
    with pytest.raises(AlreadyExists):
        tier.put_document("store.json", b"theirs", exclusive=True)


def test_a_truncated_body_is_read_on_from_where_it_broke(proxy: S3FaultProxy, tier: Tier) -> None:
    key = new_key()
    tier.put(key, MemorySource(LARGE))
    proxy.clear()
    proxy.add(Fault(method="GET", truncate_answer_bytes=3_000_000, times=3))
    assert stored(tier, key) == LARGE
    # Four ranges; the one fault that may meet the last range, of 17 bytes, does not break it.
    assert len([method for method, _ in proxy.requests if method == "GET"]) in (6, 7)


def test_a_body_that_always_breaks_is_an_error_and_not_a_short_read(proxy: S3FaultProxy, tier: Tier) -> None:
    key = new_key()
    tier.put(key, MemorySource(SMALL))
    tier.put_document("records/x", SMALL)
    proxy.add(Fault(method="GET", truncate_answer_bytes=0))
    for read in (lambda: stored(tier, key), lambda: tier.get_document("records/x")):
        with pytest.raises(TierUnavailable):
            read()
    proxy.clear()
    assert stored(tier, key) == SMALL
    assert tier.get_document("records/x") == SMALL


def test_wrong_bytes_that_are_read_fail_the_digests(proxy: S3FaultProxy, tier: Tier) -> None:
    key = new_key()
    digests = tier.put(key, MemorySource(SMALL))
    tier.put_document("records/x", SMALL)
    proxy.add(Fault(method="GET", flip_answer_byte=99))
    with pytest.raises(ChecksumMismatch):
        digests.check(0, stored(tier, key)[:BLOCK_BYTES], operation="read", subject=key)
    with pytest.raises(ChecksumMismatch):
        tier.get_document("records/x")
    proxy.clear()
    assert BlockDigests.of(stored(tier, key)) == digests
    assert tier.get_document("records/x") == SMALL


def test_an_object_replaced_under_a_reader_is_never_mixed_with_its_successor(tier: Tier) -> None:
    key, other = new_key(), content(len(LARGE), seed=9)
    tier.put(key, MemorySource(LARGE))
    reader = tier.open(key)
    tier.delete(key)
    tier.put(key, MemorySource(other))
    with pytest.raises(NotFound):
        reader.read_into(0, memoryview(bytearray(len(LARGE))))
    assert stored(tier, key) == other


def test_a_store_that_is_down_opens_and_is_asked_what_it_can_do_later(proxy: S3FaultProxy) -> None:
    proxy.down()
    tier = open_tier(proxy.endpoint_url)
    assert tier.facts.details["probe"].startswith("not answered yet")
    proxy.up()
    key = new_key()
    tier.put(key, MemorySource(SMALL))
    assert stored(tier, key) == SMALL
    assert tier.facts.details["checksum"] == "crc32, checked by the server"
    tier.close()


def test_a_crashed_upload_is_swept_by_its_id_and_no_other(seaweed: SeaweedS3, tier: Tier) -> None:
    prefix = tier.facts.location.removeprefix(f"s3://{BUCKET}/")
    ours, theirs = new_key(), new_key()
    for key in (ours, theirs):
        seaweed.client().create_multipart_upload(Bucket=BUCKET, Key=prefix + key)
    assert tier.sweep([]) == 0
    assert tier.sweep([ours.rpartition("~")[2], new_id()]) == 1
    assert unfinished_uploads(seaweed) == [prefix + theirs]
    assert tier.sweep([theirs.rpartition("~")[2]]) == 1


def test_a_missing_bucket_is_not_taken_for_missing_objects(seaweed: SeaweedS3) -> None:
    bucket = f"late-{new_id()}"
    tier = open_tier(seaweed.endpoint_url, bucket)
    key = new_key()
    for call in (
        lambda: tier.put(key, MemorySource(SMALL)),
        lambda: tier.stat(key),
        lambda: tier.open(key),
        lambda: keys(tier),
    ):
        with pytest.raises(TierUnavailable, match="create the bucket") as caught:
            call()
        assert bucket in str(caught.value)
    seaweed.create_bucket(bucket)
    tier.put(key, MemorySource(SMALL))
    assert stored(tier, key) == SMALL
    tier.close()


def test_wrong_credentials_are_named_and_new_ones_are_taken_up_without_a_restart(
    seaweed: SeaweedS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    profile = tmp_path / "credentials"
    profile.write_text(
        f"[training]\naws_access_key_id = {ACCESS}\naws_secret_access_key = anotherwrongsecret\n", "utf-8"
    )
    tier, key = open_tier(seaweed.endpoint_url, profile="training"), new_key()
    for call in (lambda: tier.put(key, MemorySource(LARGE)), lambda: tier.stat(key), lambda: keys(tier)):
        with pytest.raises(TierUnavailable, match="refuses these credentials") as caught:
            call()
        assert "anotherwrongsecret" not in str(caught.value) + repr(caught.value.__cause__)
    profile.write_text(f"[training]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {SECRET}\n", "utf-8")
    tier.put(key, MemorySource(LARGE))
    assert stored(tier, key) == LARGE
    tier.close()


@pytest.mark.parametrize("of", ["instance", "container"])
def test_the_credentials_of_a_role_are_found_taken_up_when_they_rotate_and_asked_for_before_they_expire(
    seaweed: SeaweedS3, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.delenv(name)
    with role_server() as role:
        for name, value in (role.instance() if of == "instance" else role.container()).items():
            monkeypatch.setenv(name, value)
        role.access_key, role.secret_key = ACCESS, "thesecretofyesterday"
        tier, key = open_tier(seaweed.endpoint_url), new_key()
        with pytest.raises(TierUnavailable, match="refuses these credentials") as caught:
            tier.put(key, MemorySource(SMALL))
        assert "thesecretofyesterday" not in str(caught.value)
        role.secret_key, role.expires_in_s = SECRET, 60.0
        tier.put(key, MemorySource(SMALL))
        given = role.given
        assert stored(tier, key) == SMALL
        # Those of an instance are used on: botocore takes a short rest of theirs for an outage of the service that gives them.
        assert role.given > given or of == "instance", "credentials of a minute were used without asking again"
        tier.close()


def test_without_credentials_the_error_says_so(seaweed: SeaweedS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    tier, key = open_tier(seaweed.endpoint_url), new_key()
    with pytest.raises(TierUnavailable, match="no credentials"):
        tier.put(key, MemorySource(SMALL))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    tier.put(key, MemorySource(SMALL))
    assert stored(tier, key) == SMALL
    tier.close()


def test_no_secret_reaches_a_log_an_error_or_a_repr(
    proxy: S3FaultProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    token = "thesessiontokenthatnobodymaysee"
    monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    caplog.set_level(logging.DEBUG)
    logging.getLogger("botocore").setLevel(logging.NOTSET)
    tier, errors = open_tier(proxy.endpoint_url), []
    proxy.add(Fault(status=500, times=3))
    for call in (
        lambda: tier.put(new_key(), MemorySource(LARGE)),
        lambda: tier.stat(new_key()),
        lambda: tier.get_document("none"),
    ):
        try:
            call()
        except CkptStoreError as error:
            errors.append(f"{error}{error!r}{error.to_wire()}{error.__cause__!r}")
    assert errors
    said = caplog.text + "".join(errors) + repr(tier) + repr(vars(tier)) + repr(tier.facts)
    for secret in (SECRET, token, ACCESS):
        assert secret not in said
    tier.close()


SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"


def test_a_storm_of_503_halves_what_is_in_flight_and_the_put_gets_through(proxy: S3FaultProxy, tier: Tier) -> None:
    assert isinstance(tier, ReportsTransfers)
    before = tier.transfers
    proxy.add(Fault(method="PUT", contains="partNumber=", status=503, body=SLOW_DOWN, times=8))
    key = new_key()
    assert tier.put(key, MemorySource(LARGE)) == BlockDigests.of(LARGE)
    after = tier.transfers
    assert before is not None
    assert after is not None
    assert (after.refusals, after.parallel) == (8, before.parallel // 2)
    assert tier.facts.details["parallel"].startswith(f"{after.parallel} of ")
    assert stored(tier, key) == LARGE


def test_an_answer_that_is_reset_in_the_middle_is_read_on_from_there(proxy: S3FaultProxy, tier: Tier) -> None:
    key = new_key()
    tier.put(key, MemorySource(LARGE))
    proxy.clear()
    proxy.add(Fault(method="GET", reset_answer_after_bytes=2_000_000, times=3))
    with tier.open(key).blocks() as source:  # type: ignore[attr-defined]
        scratch = memoryview(bytearray(BLOCK_BYTES))
        found = b"".join(bytes(source.block(index, scratch)) for index in range(-(-len(LARGE) // BLOCK_BYTES)))
    assert found == LARGE


def test_a_source_that_lies_in_another_bucket_is_put_without_passing_through_whole(
    seaweed: SeaweedS3, tier: Tier
) -> None:
    """Blocks are lent by the one tier while the other gathers them into parts."""
    key, data = new_key(), content(20 * BLOCK_BYTES + 5)
    tier.put(key, MemorySource(data))
    other = open_tier(seaweed.endpoint_url, part_size="32MiB")
    with blocks_of(tier.open(key)) as source:
        assert other.put(key, source) == BlockDigests.of(data)
    assert stored(other, key) == data
    other.close()


class TestCredentialsThatRotate:
    """moto knows no wrong credentials: the proxy refuses those that have expired, as Amazon does."""

    @pytest.fixture
    def proxy(self, moto: str) -> Iterator[S3FaultProxy]:
        with S3FaultProxy(moto) as proxy:
            httpx.put(f"{moto}/{BUCKET}", trust_env=False).raise_for_status()
            yield proxy

    @pytest.mark.parametrize("data", [LARGE], ids=["in_parts"])
    def test_new_ones_in_the_middle_of_a_put_and_of_a_read_are_taken_up(
        self, proxy: S3FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        profile = tmp_path / "credentials"

        def rotate(old: str, new: str) -> None:
            text = f"[training]\naws_access_key_id = {new}\naws_secret_access_key = {SECRET}\n"
            profile.write_text(text, "utf-8")
            if old:
                body = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
                proxy.add(Fault(header=f"Credential={old}/", status=403, body=body))

        rotate("", "AKFIRST")
        tier, key = open_tier(proxy.endpoint_url, profile="training"), new_key()

        class Rotating(MemorySource):
            def block(self, index: int, scratch: memoryview) -> memoryview:
                if index == 5:
                    rotate("AKFIRST", "AKSECOND")
                return super().block(index, scratch)

        assert tier.put(key, Rotating(data)) == BlockDigests.of(data)
        reader = tier.open(key)
        rotate("AKSECOND", "AKTHIRD")
        found = bytearray(len(data))
        reader.read_into(0, memoryview(found))
        assert found == data
        tier.close()


class TestAServerThatChecksNothing:
    """moto takes any checksum for right: what the wire spoils is found by reading back, and removed."""

    @pytest.fixture
    def proxy(self, moto: str) -> Iterator[S3FaultProxy]:
        with S3FaultProxy(moto) as proxy:
            httpx.put(f"{moto}/{BUCKET}", trust_env=False).raise_for_status()
            yield proxy

    @pytest.fixture
    def tier(self, proxy: S3FaultProxy) -> Iterator[Tier]:
        tier = open_tier(proxy.endpoint_url)
        assert "every put is read back" in tier.facts.details["checksum"]
        yield tier
        tier.close()

    @pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "in_parts"])
    def test_what_reads_back_differently_is_an_error_and_is_removed(
        self, proxy: S3FaultProxy, tier: Tier, data: bytes
    ) -> None:
        key = new_key()
        proxy.add(Fault(method="PUT", flip_request_byte=1234))
        with pytest.raises(ChecksumMismatch):
            tier.put(key, MemorySource(data))
        with pytest.raises(ChecksumMismatch):
            tier.put_document("records/x", data)
        proxy.clear()
        assert keys(tier) == []
        tier.put(key, MemorySource(data))
        assert stored(tier, key) == data

    def test_a_wrong_object_left_by_a_crash_is_not_taken_for_the_right_one(
        self, proxy: S3FaultProxy, tier: Tier
    ) -> None:
        key = new_key()
        proxy.add(Fault(method="PUT", flip_request_byte=1234))
        proxy.add(Fault(method="GET", status=500))
        proxy.add(Fault(method="DELETE", status=500))
        with pytest.raises(TierUnavailable):
            tier.put(key, MemorySource(SMALL))  # the store went away before it could be read back, and removed
        proxy.clear()
        with pytest.raises(AlreadyExists):
            tier.put(key, MemorySource(SMALL), expected=BlockDigests.of(SMALL))
        tier.delete(key)
        tier.put(key, MemorySource(SMALL))
        assert stored(tier, key) == SMALL
