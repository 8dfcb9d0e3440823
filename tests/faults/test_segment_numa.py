"""Where segments lie on a machine with several memory nodes. The machine that runs this may have one: its kernel says what it was told."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore_tiers import memory_segment, numa
from ckptstore_tiers.memory import RECALL_OWNER
from ckptstore_tiers.prefault import prefault
from ckptstore_tiers.shared_mapping import map_shared
from ckptstore_tiers.sources import address_of
from tests.faults.segments_place import MIB, Make, make, settle

__all__ = ["make"]

TWO = {0: frozenset({0}), 1: frozenset({1})}


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as running:
        yield running
        running.kill()


def shared(size_bytes: int) -> memoryview:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size_bytes)
        return map_shared(fd, size_bytes)
    finally:
        os.close(fd)


def policy_of(memory: memoryview) -> str:
    """What the kernel says of the mapping. Source: /proc/self/numa_maps."""
    lines = [line.split() for line in Path("/proc/self/numa_maps").read_text("ascii").splitlines()]
    return next(words[1] for words in lines if int(words[0], 16) == address_of(memory))


def test_nodes_are_those_that_have_processors(tmp_path: Path) -> None:
    for name, cpus in {"node0": "0-2,8\n", "node1": "3-5\n", "node2": "\n", "power": None}.items():
        (tmp_path / name).mkdir()
        if cpus is not None:
            (tmp_path / name / "cpulist").write_text(cpus, "ascii")
    assert numa.read_nodes(tmp_path) == {0: {0, 1, 2, 8}, 1: {3, 4, 5}}
    assert numa.read_nodes(tmp_path / "nothing") == {}
    assert os.sched_getaffinity(0) <= frozenset().union(*numa.machine_nodes().values())


def test_a_process_is_at_home_where_alone_it_may_run(process: subprocess.Popen[bytes]) -> None:
    first, *others = sorted(os.sched_getaffinity(0))
    nodes = {3: frozenset({first}), 5: frozenset(others)}
    assert numa.home_of(process.pid, nodes) == (None if others else 3)
    os.sched_setaffinity(process.pid, {first})
    assert numa.home_of(process.pid, nodes) == 3
    process.kill()
    process.wait()
    assert numa.home_of(process.pid, nodes) is None


def test_the_kernel_is_told_where_pages_are_to_be_made() -> None:
    for nodes, told in (([0], "prefer:0"), ([0, 0], "interleave:0")):
        memory = shared(4 * MIB)
        assert numa.prefer(memory, nodes)
        assert prefault(memory, huge_pages=True) and policy_of(memory) == told
    memory = shared(4 * MIB)
    assert not numa.prefer(memory, [63, 200]), "there is no such node"
    assert prefault(memory) and policy_of(memory) == "default"


def test_with_one_node_nothing_is_said_and_with_two_it_depends_on_the_process(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[int]] = []
    monkeypatch.setattr(numa, "prefer", lambda memory, nodes: told.append(nodes) or True)
    monkeypatch.setattr(numa, "home_of", lambda pid, nodes: 1 if pid == process.pid else None)
    assert not numa.settle(shared(MIB), process.pid, {0: frozenset({0, 1})}) and told == []
    for pid in (process.pid, 1, None):
        assert numa.settle(shared(MIB), pid, TWO)
    assert told == [[1], [0, 1], [0, 1]]


def test_each_segment_is_made_near_the_process_it_is_for_and_a_spare_is_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int | None]] = []
    monkeypatch.setattr(memory_segment.numa, "settle", lambda memory, pid: told.append((len(memory), pid)))
    pool = make(slots=2)
    pool.process_of = {"a": 4711}.get
    first = pool.acquire("a", MIB, timeout_s=0)
    pool.hold(first.segment_id, first.generation)
    settle(pool)
    pool.acquire(RECALL_OWNER, MIB, timeout_s=0)
    assert [pid for _, pid in told] == [4711, 4711, None]
    assert {size_bytes for size_bytes, _ in told} == {first.capacity_bytes}
