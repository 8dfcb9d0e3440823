"""A chain of guarded, incremental saves that lies in the object store alone, compressed: each of them is recalled whole, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ckptstore.errors import CkptStoreError
from ckptstore_bench.services.seaweedfs import SeaweedS3
from ckptstore_client import Store
from tests.faults.everything_on import assert_saved, save
from tests.faults.far_store import far_store
from tests.faults.fault_store import FaultStore, verified
from tests.services.s3_fault_proxy import Fault, S3FaultProxy
from tests.until import until

STEPS = range(2)
#: Fetched in two ranges, also when it was compressed: it is random.
SIZE_BYTES = 17 << 20


def at(step: int) -> str:
    return f"/run/step-{step}"


@pytest.fixture(params=["zstd", "float"])
def far(request: pytest.FixtureRequest, seaweed: SeaweedS3, proxy: S3FaultProxy, tmp_path: Path) -> Iterator[FaultStore]:
    """A daemon whose checkpoints lie in the bucket and nowhere else."""

    def save_all(store: Store) -> None:
        for step in STEPS:
            save(store, at(step), step, size_bytes=SIZE_BYTES).wait("object", timeout_s=120)

    with far_store(tmp_path, seaweed, proxy, save_all, compression=request.param) as place:
        yield place


def check_all(place: FaultStore) -> None:
    """Every step is loaded as it was saved, and what was recalled on the way is right."""
    store = place.connect()
    for step in reversed(STEPS):
        assert_saved(store.load(at(step)), step, size_bytes=SIZE_BYTES)
    until("all of it is on the node, and right", lambda: verified(store) == [])
    until("nothing half-written is left", lambda: list((place.root("nvme") / "tmp").iterdir()) == [])


def test_ranks_that_load_the_whole_chain_at_once_fetch_nothing_twice(far: FaultStore, proxy: S3FaultProxy) -> None:
    begin = threading.Barrier(len(STEPS))

    def load(step: int) -> None:
        store = far.connect()
        begin.wait(timeout=30)
        assert_saved(store.load(at(step)), step, size_bytes=SIZE_BYTES)

    with ThreadPoolExecutor(len(STEPS)) as executor:
        for done in [executor.submit(load, step) for step in STEPS]:
            done.result()
    fetched = {target for method, target in proxy.requests if method == "GET" and "safetensors" in target}
    given_bytes = sum(map(proxy.answered_bytes, fetched))
    assert len(fetched) == len(STEPS) and given_bytes <= 1.1 * len(STEPS) * SIZE_BYTES
    check_all(far)


def test_a_body_that_breaks_off_is_not_noticed_by_the_reader(far: FaultStore, proxy: S3FaultProxy) -> None:
    proxy.add(Fault(method="GET", contains="safetensors", truncate_answer_bytes=3_000_000, times=3))
    check_all(far)


def test_wrong_bytes_are_fetched_again_and_never_loaded(far: FaultStore, proxy: S3FaultProxy) -> None:
    proxy.add(Fault(method="GET", contains="safetensors", flip_answer_byte=2_000_000, times=1))
    check_all(far)


def test_a_daemon_that_dies_in_the_middle_of_a_recall_leaves_an_error_and_nothing_else(far: FaultStore, proxy: S3FaultProxy) -> None:
    proxy.add(Fault(method="GET", contains="safetensors", hang=True))
    store = far.connect()
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(store.load, at(1))
        until("it is being fetched", lambda: any("safetensors" in target for _, target in list(proxy.requests)))
        far.daemon.kill()
        with pytest.raises(CkptStoreError):
            waiting.result(timeout=120)
    proxy.clear()
    far.start()
    check_all(far)
