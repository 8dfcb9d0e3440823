"""Two nodes that share a catalog and a parallel file system, for tests: two homes, two daemons, one real PostgreSQL."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import ckptstore
from ckptstore_client.preemption import Kept
from ckptstore_client.store import Store
from tests.daemon_process import DaemonProcess, write_config
from tests.files import files_below

#: How long anything may take on a busy machine before a test gives up, in seconds.
PATIENCE_S = 60.0
WORLD_SIZE = 4
TOKEN = "a token of tests"


@dataclass
class Node:
    """One node: its home, its own NVMe, its daemon."""

    home: Path
    daemon: DaemonProcess

    @property
    def nvme(self) -> Path:
        return self.home / "nvme"

    def connect(self, group: str | None = None) -> Store:
        return ckptstore.connect(home=self.home, start=False, group=group)

    def objects(self, path: str = "") -> list[Path]:
        """What lies in its NVMe of the objects at and below a path."""
        return files_at(self.nvme / "objects", path)

    def rebuild(self, *arguments: str) -> dict[str, Any]:
        """`ckptstore catalog rebuild`, while its daemon is stopped."""
        command = [sys.executable, "-m", "ckptstore_server.rebuild_command", "--home", str(self.home), "--json", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report


@dataclass
class Cluster:
    base: Path
    url: str
    settings: dict[str, Any] = field(default_factory=dict)
    pfs: dict[str, Any] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            home = self.base / name
            self.nodes[name] = Node(home, DaemonProcess(home))
            self.configure(name, self.url)

    def configure(self, name: str, url: str, **more: Any) -> None:
        home = self.base / name
        tiers = [
            {"name": "nvme", "kind": "posix", "path": home / "nvme"},
            {"name": "pfs", "kind": "posix", "path": self.shared, "shared": True} | self.pfs,
        ]
        memory = {"limit": "64MiB", "huge_pages": False}
        write_config(home, tiers=tiers, catalog_url=url, grace_s=0, memory=memory, **(self.settings | more))

    @property
    def shared(self) -> Path:
        return self.base / "pfs"

    @property
    def a(self) -> Node:
        return self.nodes["a"]

    @property
    def b(self) -> Node:
        return self.nodes["b"]

    def start(self) -> Cluster:
        for node in self.nodes.values():
            node.daemon.start(wait=False)
        for node in self.nodes.values():
            node.daemon.wait_ready()
        return self

    def __enter__(self) -> Cluster:
        return self.start()

    def __exit__(self, *_: object) -> None:
        for node in self.nodes.values():
            node.daemon.kill()

    def pfs_files(self, prefix: str, path: str = "") -> list[Path]:
        return files_at(self.shared / prefix, path)

    @contextmanager
    def ranks(self, group: str) -> Iterator[list[Store]]:
        """Four clients of one incarnation of a job: ranks 0 and 1 on node A, 2 and 3 on node B."""
        with ExitStack() as stack:
            yield [stack.enter_context((self.a if rank < 2 else self.b).connect(group)) for rank in range(WORLD_SIZE)]


def part(rank: int, value: int) -> dict[str, Any]:
    return {"rank": rank, "w": np.random.default_rng([rank, value]).integers(0, 256, 50_000 + rank, dtype=np.uint8)}


def assert_part(found: Any, rank: int, value: int) -> None:
    assert found["rank"] == rank
    assert np.array_equal(found["w"], part(rank, value)["w"])


def files_at(root: Path, path: str = "") -> list[Path]:
    """Files below `root` whose place begins with `path`."""
    return [file for file in files_below(root) if f"/{file.relative_to(root)}".startswith(path or "/")]


class InBackground(threading.Thread):
    """A call in a thread of its own; `outcome` is its error or its result, once it has ended."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._call()
        except BaseException as error:  # noqa: BLE001 - the top of a thread: the test looks at it
            self.outcome = error

    def result(self) -> Any:
        self.join(PATIENCE_S)
        assert not self.is_alive(), "it still waits"
        return self.outcome


def trained(store: Store, rank: int, steps: list[int], leave: threading.Event) -> Kept | None:
    """A loop at a pace of this rank's own, which saves when it is asked to, until it is told to leave."""
    with store.preemption("/asked", rank=rank, world_size=WORLD_SIZE, signals=(), grace_s=PATIENCE_S) as notice:
        for step in itertools.count(1):
            time.sleep(0.002 * (rank + 1))
            if leave.is_set() and rank == WORLD_SIZE - 1:
                notice.preempt("the machine is taken away")
            if notice.wanted(step):
                store.save(f"/asked/{step}", part(rank, step), step=step, rank=rank, world_size=WORLD_SIZE)
                steps.append(step)
            if notice.leaving:
                break
    return notice.kept
