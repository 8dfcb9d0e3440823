"""What lies in the object store alone is read once for all who want it, while it is written to NVMe, and never wrong."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptstore.config import read_settings
from ckptstore.errors import CkptStoreError, NotFound
from ckptstore_bench.services.seaweedfs import SeaweedS3
from ckptstore_client import Store
from ckptstore_client.descriptors import DescriptorConnection
from tests.faults.far_store import far_store
from tests.faults.fault_store import FaultStore, objects_below, verified
from tests.services.s3_fault_proxy import Fault, S3FaultProxy
from tests.until import until

RANGE_BYTES = 16 << 20
#: Fetched in three ranges.
STATE_BYTES = 40 << 20
PATH = "/run/step-1"


def state() -> dict[str, Any]:
    generator = np.random.default_rng(1)
    rest = generator.integers(0, 256, STATE_BYTES, dtype=np.uint8)
    return {"first": generator.integers(0, 256, 1 << 20, dtype=np.uint8), "rest": rest}


@dataclass
class HeldLook:
    """Rigging for a daemon that holds up what it found when it looked where an object lies, while a file `hold` is in its home.

    The first such look takes the file's place by one `held`, and waits until that is gone.
    """

    home: Path

    def __call__(self, stack: ExitStack) -> None:
        from ckptstore.catalog.model import StoredFile
        from ckptstore.wire import Located
        from ckptstore_server.recall import Recall

        looks = Recall._look

        async def late(recall: Recall, file: StoredFile) -> Located:
            found = await looks(recall, file)
            with suppress(FileNotFoundError):
                (self.home / "hold").rename(self.home / "held")
                await asyncio.to_thread(until, "the look may go on", lambda: not (self.home / "held").exists())
            return found

        Recall._look = late  # type: ignore[method-assign]


@pytest.fixture
def far(seaweed: SeaweedS3, proxy: S3FaultProxy, tmp_path: Path) -> Iterator[FaultStore]:
    """A daemon whose one checkpoint lies in the bucket and nowhere else."""

    def save(store: Store) -> None:
        store.save(PATH, state(), step=1).wait("object", timeout_s=120)

    with far_store(tmp_path, seaweed, proxy, save, rigging=HeldLook(tmp_path / "home")) as place:
        yield place


def hold_after_the_first_range(proxy: S3FaultProxy) -> None:
    for start in (RANGE_BYTES, 2 * RANGE_BYTES):
        proxy.add(Fault(method="GET", contains="/objects/", header=f"bytes={start}-", hang=True))


def whole(store: Store) -> bool:
    found, expected = store.load(PATH), state()
    return all(np.array_equal(found[name], expected[name]) for name in expected)


def ranges_fetched(proxy: S3FaultProxy) -> int:
    """Ranges of the rank's file that were asked for; the index has one GET of its own."""
    return sum(method == "GET" and "safetensors" in target for method, target in proxy.requests)


def test_the_first_bytes_are_loaded_while_the_last_ones_are_still_in_the_store(far: FaultStore, proxy: S3FaultProxy) -> None:
    hold_after_the_first_range(proxy)
    store = far.connect()
    assert np.array_equal(store.load(PATH, only="first")["first"], state()["first"])
    assert not any("safetensors" in path.name for path in objects_below(far.root("nvme")))
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(whole, store)
        proxy.clear()
        assert waiting.result(timeout=60)
    until("the recall is recorded", lambda: any("safetensors" in path.name for path in objects_below(far.root("nvme"))))
    assert [line.problem for line in verified(store) if "safetensors" in line.path] == []


def test_what_waits_in_the_queue_leaves_a_recall_that_is_under_way_alone(far: FaultStore, proxy: S3FaultProxy) -> None:
    """A recall is in the tier's queue, so that a crash leaves work for the next daemon; the loop that works it off finds it there."""
    hold_after_the_first_range(proxy)
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(whole, far.connect())
        until("the recall is under way", lambda: ranges_fetched(proxy) == 3)
        store = far.connect()
        for number in range(3):  # each makes all loops look at what waits
            store.save(f"/other/{number}", {"w": np.ones(3)}).wait("object", timeout_s=60)
        begun_again = sum(method == "GET" and f"{PATH}/rank" in target for method, target in proxy.requests) - 3
        proxy.clear()
        assert waiting.result(timeout=60)
    assert not begun_again


def test_several_ranks_that_load_at_once_read_the_store_once(far: FaultStore, proxy: S3FaultProxy) -> None:
    begin = threading.Barrier(4)

    def load() -> bool:
        store = far.connect()
        begin.wait(timeout=30)
        return whole(store)

    with ThreadPoolExecutor(4) as executor:
        assert [one.result() for one in [executor.submit(load) for _ in range(4)]] == [True] * 4
    assert ranges_fetched(proxy) == 3
    with far.daemon.http() as http:
        lines = http.get("/metrics").text.splitlines()
    figures = {line.split()[0]: float(line.split()[1]) for line in lines if 'tier="object"' in line}
    assert 1 <= figures['ckptstore_tier_parallel{tier="object"}'] <= 16
    assert figures['ckptstore_tier_moved_bytes{tier="object"}'] >= STATE_BYTES


def test_who_looked_before_a_recall_ended_and_asks_for_one_after_it_begins_no_other(far: FaultStore, proxy: S3FaultProxy) -> None:
    hold, held = far.home / "hold", far.home / "held"
    with far.daemon.http() as http, far.connect() as store, ThreadPoolExecutor(1) as executor:
        publication = http.get("/v1/publications", params={"path": PATH}).json()
        files = http.get(f"/v1/publications/{publication['publication_id']}/files").json()["files"]
        (object_id,) = [one["object_id"] for one in files if "safetensors" in one["name"]]
        with DescriptorConnection(read_settings(far.home / "config.toml", home=far.home).fd_socket) as client, pytest.raises(NotFound):
            client.open(object_id, "nvme")  # the daemon learns that the local copy is gone
        hold.touch()
        late = executor.submit(http.get, f"/v1/objects/{object_id}/replicas", timeout=120)
        try:
            until("it has looked", held.exists)
            assert whole(store)
            until("the recall has ended", lambda: any("safetensors" in path.name for path in objects_below(far.root("nvme"))))
        finally:
            held.unlink()
        assert [replica["tier"] for replica in late.result().json()["replicas"] if replica["openable"]] == ["nvme"]
    assert ranges_fetched(proxy) == 3


def test_what_is_streamed_over_http_is_recalled_on_the_way_and_read_once(far: FaultStore, proxy: S3FaultProxy) -> None:
    with far.daemon.http() as http:
        publication = http.get("/v1/publications", params={"path": PATH}).json()
        files = http.get(f"/v1/publications/{publication['publication_id']}/files").json()["files"]
        file = next(one for one in files if "safetensors" in one["name"])
        content = f"/v1/objects/{file['object_id']}/content"
        http.get(content, headers={"range": "bytes=0-0"})  # the daemon learns that the local copy is gone
        proxy.clear()
        first, second = (http.get(content, timeout=60) for _ in range(2))
    assert (first.status_code, len(first.content), first.content) == (200, file["size_bytes"], second.content)
    assert ranges_fetched(proxy) == 3


def test_a_body_that_breaks_off_in_the_middle_of_a_recall_is_not_noticed_by_the_reader(far: FaultStore, proxy: S3FaultProxy) -> None:
    proxy.add(Fault(method="GET", contains="safetensors", truncate_answer_bytes=5_000_000, times=2))
    assert whole(far.connect())


def test_wrong_bytes_are_fetched_again_and_never_loaded(far: FaultStore, proxy: S3FaultProxy) -> None:
    proxy.add(Fault(method="GET", contains="safetensors", header=f"bytes={RANGE_BYTES}-", flip_answer_byte=100, times=1))
    assert whole(far.connect())


def test_a_daemon_that_dies_in_the_middle_of_a_recall_leaves_an_error_and_nothing_else(far: FaultStore, proxy: S3FaultProxy) -> None:
    hold_after_the_first_range(proxy)
    store = far.connect()
    store.load(PATH, only="first")
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(whole, store)
        far.daemon.kill()
        with pytest.raises(CkptStoreError):
            waiting.result(timeout=120)
    proxy.clear()
    far.start()
    assert whole(far.connect())
    assert list((far.root("nvme") / "tmp").iterdir()) == []
