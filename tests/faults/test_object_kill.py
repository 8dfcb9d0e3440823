"""The daemon dies of SIGKILL between any two calls of a drain into a real S3 server, of a replacement there and of a deletion.

A proxy holds one request: before the server has seen it, or when the server has acted and the daemon has no answer yet. Then the daemon
is killed, and the next one is held to what the bucket itself must hold at the end: each object once and whole, each record, and nothing
else, no unfinished upload either.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from ckptstore.errors import DaemonUnavailable
from ckptstore_bench.services.seaweedfs import SeaweedS3
from ckptstore_client import Store
from tests.faults.fault_store import assert_state, objects_below, state_of, verified
from tests.faults.forked_daemon import TURN_S
from tests.faults.outage import QUICK, Outage, outage
from tests.services.s3_fault_proxy import Fault
from tests.until import until

#: Three parts of 8 MiB and less.
SIZE_BYTES = (20 << 20) + 17
PART = {"part_size": "8MiB"}
PATH = "/run/step-0"


@dataclass(frozen=True)
class Call:
    """A request to the server, by what its target contains."""

    method: str
    contains: str

    def held(self, *, acted: bool) -> Fault:
        return Fault(method=self.method, contains=self.contains, hang=not acted, hold_answer=acted)


UPLOAD = {
    "looks_for_the_object": Call("HEAD", "/objects/run"),
    "begins_an_upload": Call("POST", "?uploads"),
    "sends_a_part": Call("PUT", "partNumber=2"),
    "completes_it": Call("POST", "uploadId="),
    "puts_a_small_object": Call("PUT", "checkpoint.json"),
    "writes_the_record": Call("PUT", "/records/"),
}
REMOVAL = {
    "writes_the_tombstone": Call("PUT", "/tombstones/"),
    "deletes_an_object": Call("DELETE", "/objects/run"),
    "deletes_the_record": Call("DELETE", "/records/"),
    "deletes_the_tombstone": Call("DELETE", "/tombstones/"),
}


@pytest.fixture
def stage(seaweed: SeaweedS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    with outage(seaweed, tmp_path_factory.mktemp("kill"), patience=QUICK | PART | {"read_timeout_s": 60.0}) as stage:
        stage.place.daemon.turn_s = TURN_S
        stage.place.start()
        yield stage


def save(store: Store, value: int, *, replace: bool = False) -> None:
    store.save(PATH, state_of(value, size_bytes=SIZE_BYTES), step=value, replace=replace).wait("nvme", timeout_s=60)


def killed_at(stage: Outage, fault: Fault) -> Store:
    """Once the request is held, the daemon is killed and another one started."""
    assert fault.held.wait(60), "no request came to be held"
    stage.place.daemon.kill()
    stage.proxy.clear()
    stage.place.start()
    return stage.place.connect()


def assert_holds(stage: Outage, store: Store, value: int) -> None:
    """The bucket holds this version, whole and once, with its record, and nothing else; a load that has only the bucket gives it."""
    store.wait(PATH, "object", timeout_s=60)
    until("nothing else is there", lambda: len(stage.bucket("objects")) == 2 and len(stage.bucket("records")) == 1)
    assert stage.missing(PATH) == []
    assert stage.has_record(store.stat(PATH).publication_id)
    until("no upload is left", lambda: stage.unfinished_uploads == [])
    assert verified(store) == []
    stage.place.daemon.stop()
    for tier in ("nvme", "pfs"):
        for file in objects_below(stage.place.root(tier)):
            file.unlink()
    stage.place.start()
    assert_state(stage.place.connect().load(PATH), value, size_bytes=SIZE_BYTES)


@pytest.mark.parametrize("acted", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", UPLOAD)
def test_a_daemon_killed_while_it(stage: Outage, call: str, acted: bool) -> None:
    fault = stage.proxy.add(UPLOAD[call].held(acted=acted))
    save(stage.place.connect(), 1)
    assert_holds(stage, killed_at(stage, fault), 1)


@pytest.mark.parametrize("acted", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", REMOVAL)
def test_a_daemon_killed_while_for_a_removal_it(stage: Outage, call: str, acted: bool) -> None:
    store = stage.place.connect()
    save(store, 1)
    store.wait(PATH, "object", timeout_s=60)
    fault = stage.proxy.add(REMOVAL[call].held(acted=acted))
    with ThreadPoolExecutor(1) as other:  # it waits for the first tombstone, or for longer than this test means to
        removing = other.submit(store.rm, PATH)
        store = killed_at(stage, fault)
        assert isinstance(removing.exception(), DaemonUnavailable | None)
    until("all of it is gone", lambda: not any(stage.bucket(kind) for kind in ("objects", "records", "tombstones")))
    assert stage.unfinished_uploads == []
    assert verified(store) == []


@pytest.mark.parametrize("acted", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", REMOVAL)
def test_a_daemon_killed_while_for_a_replacement_it(stage: Outage, call: str, acted: bool) -> None:
    store = stage.place.connect()
    save(store, 1)
    store.wait(PATH, "object", timeout_s=60)
    fault = stage.proxy.add(REMOVAL[call].held(acted=acted))
    save(store, 2, replace=True)
    assert_holds(stage, killed_at(stage, fault), 2)


def test_an_upload_whose_store_is_down_when_the_next_daemon_starts_is_swept_all_the_same(stage: Outage) -> None:
    fault = stage.proxy.add(UPLOAD["sends_a_part"].held(acted=True))
    save(stage.place.connect(), 1)
    assert fault.held.wait(60)
    stage.place.daemon.kill()
    stage.proxy.clear()
    assert len(stage.unfinished_uploads) == 1
    stage.proxy.down()
    stage.place.start()
    store = stage.place.connect()
    until("the store is known to be down", lambda: store.status().tiers[-1].state == "down")
    stage.proxy.up()
    assert_holds(stage, store, 1)
