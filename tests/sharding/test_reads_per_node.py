"""What does a node fetch of a checkpoint that lies in S3 alone, when its ranks need parts of it? Those parts, and once.

Counted in front of a real S3 server, by a proxy: bytes of the bodies that it answered, against the 4 MiB blocks that are needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard

import ckptstore
from ckptstore.config import read_settings
from ckptstore.errors import TierFull
from ckptstore_bench.ports import free_port
from ckptstore_bench.services.seaweedfs import SeaweedS3
from ckptstore_client import Store
from ckptstore_client.mount.daemon_source import DaemonSource
from ckptstore_tiers.checksums import BLOCK_BYTES
from tests.faults.fault_store import FaultStore, objects_below, posix_tier
from tests.services.s3_fault_proxy import S3FaultProxy
from tests.sharding.simulated import Ranks, dtensor, full, mesh_of, needed_blocks, states_of

BUCKET, TOKEN = "checkpoints", "a token of the tests"
#: 176 MiB on two ranks: of 22 blocks each.
WHOLES = {"w": torch.randn(11 << 10, 2 << 10), "v": torch.randn(22 << 20)}
SAVED_RANKS = 2


@dataclass(frozen=True)
class Far:
    """A bucket that holds a store's checkpoints, and the way to it."""

    folder: Path
    proxy: S3FaultProxy
    environment: dict[str, str]

    def node(self, name: str) -> FaultStore:
        """Not started; with a disk of its own."""
        folder = self.folder / name
        tiers = [posix_tier("nvme", folder / "nvme"), {"name": "object", "kind": "object", "url": f"s3://{BUCKET}/store"}]
        settings = {"memory": {"limit": "512MiB"}, "listen": f"127.0.0.1:{free_port()}", "token": TOKEN}
        return FaultStore(folder / "home", tiers, environment=self.environment, settings=settings)

    def given_bytes(self) -> int:
        """Of objects, since the last `clear` of the proxy."""
        targets = {target.partition("?")[0] for method, target in self.proxy.requests if method == "GET" and "/objects/" in target}
        return sum(map(self.proxy.answered_bytes, targets))


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    folder = tmp_path_factory.mktemp("far")
    with SeaweedS3(folder / "seaweed") as server, S3FaultProxy(server.endpoint_url) as proxy:
        server.create_bucket(BUCKET)
        far = Far(folder, proxy, {**server.environment(), "AWS_ENDPOINT_URL": proxy.endpoint_url})
        with far.node("saving") as place:
            place.start()
            with Ranks(place.home) as ranks:
                mesh = [Shard(0)]
                ranks.save(
                    "/x",
                    states_of(SAVED_RANKS, lambda _: {n: dtensor(w, mesh_of((SAVED_RANKS,)), mesh) for n, w in WHOLES.items()}),
                    wait="object",
                )
                ranks[0].save("/one", dict(WHOLES), rank=0, world_size=1).wait("object", timeout_s=60)
            place.daemon.stop()
        yield far


@pytest.fixture
def node(far: Far, request: pytest.FixtureRequest) -> Iterator[FaultStore]:
    """A node that has nothing but S3 to read from."""
    with far.node(f"node-{len(list(far.folder.iterdir()))}") as place:
        rebuild = [sys.executable, "-m", "ckptstore_server.rebuild_command", "--home", str(place.home)]
        subprocess.run(rebuild, env={**os.environ, **far.environment}, check=True, capture_output=True, timeout=60)
        place.start()
        far.proxy.clear()
        yield place
        place.daemon.stop()
        shutil.rmtree(place.home.parent)


def shares(count: int, how: Any) -> list[dict[str, Any]]:
    placements = {"w": [how], "v": [how if isinstance(how, Replicate) else Shard(0)]}
    return states_of(count, lambda _: {n: dtensor(w, mesh_of((count,)), placements[n], empty=True) for n, w in WHOLES.items()})


def assert_loaded(state: dict[str, Any]) -> None:
    for name, whole in WHOLES.items():
        assert torch.equal(state[name].to_local(), full(state[name], whole)), name


def loaded(store: Store, state: dict[str, Any]) -> None:
    store.load("/x", into=state, rank=None)
    assert_loaded(state)


@pytest.mark.parametrize(
    ("count", "mine", "how"),
    [
        (4, [1], Shard(0)),
        (4, [1], Shard(1)),
        (4, [1, 2], Shard(0)),
        (3, [0, 1, 2], Shard(0)),
        (3, [0, 1, 2], Replicate()),
    ],
    ids=["one of four", "one of four, by columns", "two of four", "all of three", "the same on three"],
)
def test_the_ranks_of_a_node_have_what_they_need_fetched_once(
    far: Far, node: FaultStore, count: int, mine: list[int], how: Any
) -> None:
    with Ranks(node.home) as ranks, ThreadPoolExecutor(len(mine)) as at_once:
        states = shares(count, how)
        for done in [at_once.submit(loaded, ranks[rank], states[rank]) for rank in mine]:
            done.result()
        given = far.given_bytes()
        needed = set[tuple[int, int]]().union(*(needed_blocks(ranks[0], "/x", states[rank]) for rank in mine))
        assert given <= 1.05 * len(needed) * BLOCK_BYTES
        given = far.given_bytes()  # to know what is needed, other headers were read, too
        for rank in mine:  # and a second load asks S3 for nothing
            loaded(ranks[rank], states[rank])
        assert far.given_bytes() == given


@pytest.mark.parametrize("way", ["on the node", "over the network", "without room for a copy"])
def test_what_only_names_is_fetched_and_the_rest_is_not(
    far: Far, node: FaultStore, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(source: DaemonSource, *_: Any, **__: Any) -> None:
        raise TierFull("no room", operation="read")

    if way == "without room for a copy":
        monkeypatch.setattr(DaemonSource, "need", no_room)
    listens = f"http://{read_settings(node.home / 'config.toml', home=node.home).listen}"
    with ckptstore.connect(listens, token=TOKEN) if way == "over the network" else node.connect() as store:
        assert torch.equal(store.load("/one", only="v")["v"], WHOLES["v"])
        blocks = -(-WHOLES["v"].nbytes // BLOCK_BYTES) + 1
        assert far.given_bytes() <= 1.05 * (blocks + 1) * BLOCK_BYTES  # one for the header


def test_what_is_wanted_whole_is_recalled_for_everybody(far: Far, node: FaultStore) -> None:
    found = node.connect().load("/one")
    assert all(torch.equal(found[name], whole) for name, whole in WHOLES.items())
    size_bytes = sum(whole.nbytes for whole in WHOLES.values())
    assert size_bytes <= far.given_bytes() <= 1.01 * size_bytes + BLOCK_BYTES
    assert len(objects_below(node.root("nvme"))) == 1
