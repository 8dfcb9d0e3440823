"""The object store is down, slow, broken or lying: saves go on, the lag is shown, everything arrives, and nothing counts that is not there.

A real SeaweedFS stands behind a proxy that spoils what passes. What is said to be in the store is compared with what its bucket holds,
read past the proxy and past the daemon.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ckptstore.errors import ChecksumMismatch, TierUnavailable, WaitTimeout
from ckptstore.wire import TierStatus
from ckptstore_bench.services.seaweedfs import SeaweedS3
from ckptstore_client import Store
from tests.faults.everything_on import assert_saved
from tests.faults.fault_store import objects_below, state_of, tier_status, verified
from tests.faults.outage import Outage, outage
from tests.services.s3_fault_proxy import Fault
from tests.until import until

#: Saves made while the store is broken.
SAVES = 2
#: Saves of 1 MiB made while it is slow, and what it takes and gives then: half a minute for one, two for all.
SAVES_BESIDE_A_SLOW_STORE = 4
SLOW_BYTES_PER_S = 32 << 10


@pytest.fixture(scope="module")
def started(seaweed: SeaweedS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    with outage(seaweed, tmp_path_factory.mktemp("outage")) as stage:
        stage.place.start()
        yield stage


@pytest.fixture
def stage(started: Outage) -> Iterator[Outage]:
    """A daemon that runs, with a store that works: shared by the tests that do not restart it."""
    yield started
    started.proxy.up()
    started.proxy.clear()


@pytest.fixture
def unstarted(seaweed: SeaweedS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    with outage(seaweed, tmp_path_factory.mktemp("restart")) as stage:
        yield stage


@pytest.fixture
def patient(seaweed: SeaweedS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    """With more patience than the slow store needs for all that it is sent at once: its answers are slow, but they are answers."""
    with outage(seaweed, tmp_path_factory.mktemp("slow"), patience={"read_timeout_s": 300.0}) as stage:
        stage.place.start()
        yield stage


@pytest.fixture
def run(request: pytest.FixtureRequest) -> str:
    """A folder of the namespace of this test's own."""
    return "/" + re.sub("[^a-z]+", "-", request.node.name)


def object_tier(store: Store) -> TierStatus:
    return tier_status(store.status(), "object")


FAULTS = {
    "unavailable": [Fault(status=503, body=b"<Error><Code>ServiceUnavailable</Code></Error>")],
    "internal error": [Fault(status=500, body=b"<Error><Code>InternalError</Code></Error>")],
    "forbidden": [Fault(status=403, body=b"<Error><Code>AccessDenied</Code></Error>")],
    "resetting": [Fault(method="PUT", reset_after_bytes=1), Fault(method="POST", reset_after_bytes=1)],
    "losing answers": [Fault(lose_answer=True)],
    "hanging": [Fault(hang=True)],
    "garbage": [Fault(status=200, body=b"<html>welcome to the hotel's wireless network</html>")],
    "flipping what is written": [Fault(method="PUT", contains="/objects/", flip_request_byte=77)],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_saves_go_on_beside_a_broken_store_and_arrive_when_it_is_mended(fault: str, stage: Outage, run: str) -> None:
    with stage.place.connect() as store:
        until("the object tier works, and nothing waits", lambda: (now := object_tier(store)).state == "ok" and not now.waiting_objects)
        for rule in FAULTS[fault]:
            stage.proxy.add(rule.again())
        stage.save(store, run, range(SAVES))
        lag = until("the failure is shown", lambda: (shown := object_tier(store)).last_error and shown)
        assert lag.waiting_objects == 2 * SAVES
        assert lag.waiting_bytes >= SAVES << 20
        assert lag.oldest_waiting_s > 0
        for step in range(SAVES):
            entry = store.stat(f"{run}/step-{step}")
            until("both local tiers have it", lambda at=step: store.stat(f"{run}/step-{at}").durability == ["nvme", "pfs"])  # type: ignore[misc]
            assert not stage.has_record(entry.publication_id)
            with pytest.raises(WaitTimeout):
                store.wait(f"{run}/step-{step}", "object", timeout_s=0)
        stage.proxy.clear()
        stage.assert_all_arrived(store, run, range(SAVES))
        recovered = until("nothing waits", lambda: (now := object_tier(store)).waiting_objects == 0 and now)
        assert (recovered.state, recovered.oldest_waiting_s) == ("ok", 0)
        assert verified(store, run) == []


def test_saves_go_on_beside_a_slow_store_which_is_not_called_down_and_gets_all_when_it_is_quick(patient: Outage, run: str) -> None:
    with patient.place.connect() as store:
        patient.proxy.add(Fault(bytes_per_s=SLOW_BYTES_PER_S))
        store.save(f"{run}/small", state_of(9, size_bytes=1 << 10)).wait("object", timeout_s=60)
        assert patient.missing(f"{run}/small") == [], "little is brought to a slow store, too"
        patient.save(store, run, range(SAVES_BESIDE_A_SLOW_STORE))
        lag = object_tier(store)
        assert SAVES_BESIDE_A_SLOW_STORE <= lag.waiting_objects <= 2 * SAVES_BESIDE_A_SLOW_STORE
        assert lag.waiting_bytes >= SAVES_BESIDE_A_SLOW_STORE << 20
        assert lag.oldest_waiting_s > 0
        older = until("the oldest grows older", lambda: (now := object_tier(store)).oldest_waiting_s > lag.oldest_waiting_s + 1 and now)
        assert (older.state, older.last_error) == ("ok", None)
        for step in range(SAVES_BESIDE_A_SLOW_STORE):
            entry = store.stat(f"{run}/step-{step}")
            assert "object" not in entry.durability
            assert patient.missing(entry.path) != [] and not patient.has_record(entry.publication_id)
            with pytest.raises(WaitTimeout):
                store.wait(entry.path, "object", timeout_s=0)
        patient.proxy.quicken()
        for step in range(SAVES_BESIDE_A_SLOW_STORE):
            store.wait(f"{run}/step-{step}", "object", timeout_s=90)
            assert patient.missing(f"{run}/step-{step}") == []
            assert patient.has_record(store.stat(f"{run}/step-{step}").publication_id)
        caught_up = until("nothing waits", lambda: (now := object_tier(store)).waiting_objects == 0 and now)
        assert (caught_up.state, caught_up.waiting_bytes, caught_up.oldest_waiting_s, caught_up.last_error) == ("ok", 0, 0, None)
        puts = [target for method, target in patient.proxy.requests if method == "PUT" and f"/objects{run}/" in target]
        assert len(puts) == len(set(puts)), "slowness alone is no reason to send anything twice"
        assert verified(store, run) == []


def test_a_store_that_is_down_is_called_down_and_is_ok_again_by_itself(stage: Outage, run: str) -> None:
    with stage.place.connect() as store:
        stage.proxy.down()
        stage.save(store, run, range(1))
        down = until("the tier is called down", lambda: (now := object_tier(store)).state == "down" and now)
        assert down.last_error
        assert any("object" in line.where for line in store.status().errors)
        stage.proxy.up()
        stage.assert_all_arrived(store, run, range(1))
        assert object_tier(store).state == "ok"


def test_a_store_that_breaks_off_now_and_then_gets_everything_once_and_whole(stage: Outage, run: str) -> None:
    with stage.place.connect() as store:
        stage.proxy.add(Fault(method="PUT", lose_answer=True, times=2))
        stage.proxy.add(Fault(method="PUT", reset_after_bytes=100_000, times=2))
        stage.proxy.add(Fault(status=503, times=3))
        stage.proxy.add(Fault(truncate_answer_bytes=10, method="GET", times=2))
        stage.save(store, run, range(SAVES))
        stage.assert_all_arrived(store, run, range(SAVES))


def test_durability_never_runs_ahead_of_the_bucket(stage: Outage, run: str) -> None:
    """A watcher asks for durability without pause while uploads are spoilt; whenever it hears "object", it reads the bucket itself."""
    stop, lies, seen = threading.Event(), [], set()

    def watch(watching: Store) -> None:
        while not stop.is_set():
            for entry in watching.ls(run):
                if "object" in entry.durability and entry.path not in seen:
                    seen.add(entry.path)
                    lies.extend(stage.missing(entry.path))
                    lies.extend([] if stage.has_record(entry.publication_id) else [f"no record of {entry.path}"])

    with stage.place.connect() as store, stage.place.connect() as watching:
        stage.proxy.add(Fault(method="PUT", lose_answer=True, times=2))
        stage.proxy.add(Fault(method="PUT", contains="/objects/", flip_request_byte=5, times=2))
        stage.proxy.add(Fault(method="PUT", contains="/records/", status=503, times=2))
        stage.save(store, run, range(1))
        watcher = threading.Thread(target=watch, args=[watching])
        watcher.start()
        try:
            stage.save(store, run, range(1, 4))
            stage.assert_all_arrived(store, run, range(4))
            until("the watcher has seen all of it", lambda: len(seen) == 4)
        finally:
            stop.set()
            watcher.join(timeout=30)
    assert lies == []


def test_a_daemon_that_starts_while_the_store_is_down_serves_and_catches_up(unstarted: Outage) -> None:
    unstarted.proxy.down()
    unstarted.place.start()
    store = unstarted.place.connect()
    unstarted.save(store, "/run", range(2))
    assert object_tier(store).state == "down"
    assert_saved(store.load("/run/@latest"), 1)
    assert unstarted.bucket("objects") == {}
    unstarted.place.daemon.kill()
    unstarted.place.start()
    unstarted.save(store, "/run", range(2, 3))
    shown = object_tier(store)
    assert (shown.waiting_objects, shown.state) == (6, "down")
    unstarted.place.daemon.stop()
    unstarted.place.start()
    unstarted.proxy.up()
    unstarted.assert_all_arrived(store, "/run", range(3))


def test_with_only_a_lying_store_left_a_load_refuses_rather_than_give_wrong_bytes(unstarted: Outage) -> None:
    unstarted.place.start()
    store = unstarted.place.connect()
    unstarted.save(store, "/run", range(1))
    store.wait("/run/step-0", "object", timeout_s=60)
    unstarted.place.daemon.kill()
    for tier in ("nvme", "pfs"):
        for path in objects_below(unstarted.place.root(tier)):
            path.unlink()
    unstarted.place.start()
    unstarted.proxy.add(Fault(method="GET", contains="/objects/", flip_answer_byte=100))
    with pytest.raises((ChecksumMismatch, TierUnavailable)):
        store.load("/run/step-0")
    unstarted.proxy.clear()
    unstarted.proxy.add(Fault(method="GET", contains="/objects/", truncate_answer_bytes=5000, times=3))
    assert_saved(until("the store is believed again", lambda: loaded(store, "/run/step-0")), 0)


def loaded(store: Store, path: str) -> Any:
    """The checkpoint, or None while no good replica of it can be read."""
    try:
        return store.load(path)
    except (ChecksumMismatch, TierUnavailable):
        return None
