"""One tensor of more than 2 GiB goes all the way, through memory, a disk and a real S3 server, and comes back from each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ckptstore_bench.services.seaweedfs import SeaweedS3
from ckptstore_client import Store
from tests.faults.fault_store import FaultStore, objects_below, posix_tier

#: More than 31 bits hold, and no whole number of blocks.
SIZE_BYTES = (2 << 30) + 12_345
#: So much of it is a different number each time: what lies at a wrong place is seen.
PERIOD = 1_000_003


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultStore]:
    folder = tmp_path_factory.mktemp("large")
    with SeaweedS3(folder / "seaweed") as server:
        server.create_bucket("large")
        tiers = [posix_tier("nvme", folder / "nvme"), {"name": "object", "kind": "object", "url": "s3://large/store"}]
        settings = {"memory": {"limit": "3GiB", "slots": 1}}
        with FaultStore(folder / "home", tiers, environment=server.environment(), settings=settings) as place:
            yield place.start()
    shutil.rmtree(folder)  # 4 GiB, which pytest would keep


def state() -> dict[str, Any]:
    pattern = torch.randint(0, 256, (PERIOD,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return {"large": pattern.repeat(-(-SIZE_BYTES // PERIOD))[:SIZE_BYTES].clone(), "step": 7}


def assert_loads(store: Store, saved: dict[str, Any]) -> None:
    into = {"large": torch.zeros(SIZE_BYTES, dtype=torch.uint8), "step": 0}
    found = store.load("/run/large", into=into)
    assert found["step"] == 7
    assert torch.equal(into["large"], saved["large"])


def test_a_tensor_of_more_than_2_gib_comes_back_from_memory_disk_and_s3(place: FaultStore) -> None:
    saved, store = state(), place.connect()
    store.save("/run/large", saved).wait_published(timeout_s=120)
    assert_loads(store, saved)
    store.wait("/run/large", "object", timeout_s=240)
    place.daemon.kill()  # and with it the copy in memory
    place.start()
    assert_loads(store, saved)
    place.daemon.stop()
    for file in objects_below(place.root("nvme")):
        file.unlink()
    place.start()
    assert_loads(store, saved)
