"""How is it measured? One job saves, its ways in turn; then it and a job of another size load, cold, again in turn, and so does fio.

All ranks are processes of their own with a gloo group, driven over their standard input; a number is that of the slowest rank. Before the
save that counts, each way fills as many buffers as it has by saves that do not: while the others had their turns its memory lay idle, and
a hypervisor may have taken the pages, which a training loop that saves by itself never meets. Before each load the files of both stores
are dropped from the page cache, and the daemon is started anew, so that nothing is in memory.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptstore_bench.cold import make_cold, own_memory
from ckptstore_bench.dcp.ways import BUFFERS, FIO, STORE, WAYS, folder_of, path_of
from ckptstore_bench.fio import Fio
from ckptstore_bench.line_process import LineProcess
from ckptstore_bench.ports import free_port
from ckptstore_bench.running import Steps
from ckptstore_bench.workspace import Workspace

PROGRAM = "ckptstore_bench.dcp.rank"
#: The turns in which nothing but `Store.save` saves come after all others.
SHARDS = 1_000_000


@dataclass(frozen=True)
class Wanted:
    size_bytes: int
    ranks: int
    others: int
    tensors: int
    planned: int
    rounds: int


@dataclass
class Results:
    """Seconds, one a round, by measure and way."""

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    plan_s: list[float] = field(default_factory=list)
    collectives: list[float] = field(default_factory=list)


class Job:
    """The processes of one job."""

    def __init__(self, ranks: Sequence[LineProcess]) -> None:
        self._ranks = ranks

    def ask(self, **order: Any) -> dict[str, float]:
        """What the slowest rank took."""
        for rank in self._ranks:
            rank.tell(**order)
        return self.answer()

    def answer(self) -> dict[str, float]:
        answers = [rank.answer() for rank in self._ranks]
        return {name: max(answer[name] for answer in answers) for name in answers[0]}


@contextmanager
def running(workspace: Workspace, wanted: Wanted, count: int) -> Iterator[Job]:
    """A job of so many ranks that are ready."""
    arguments = [str(workspace.home), str(workspace.folder), str(wanted.size_bytes), str(wanted.tensors)]
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    group |= {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_WORLD_SIZE": str(count)}
    with ExitStack() as processes:
        environments = (group | {"RANK": str(rank)} for rank in range(count))
        job = Job([processes.enter_context(LineProcess(PROGRAM, arguments, environment)) for environment in environments])
        job.answer()
        yield job


def measure(wanted: Wanted, workspace: Workspace, steps: Steps) -> Results:
    results = Results()
    disk = Fio(workspace.folder / FIO, wanted.size_bytes) if shutil.which("fio") is not None else None
    steps.plan((3 * wanted.rounds + 1) * len(WAYS) + wanted.rounds + (1 if disk is None else 2 * wanted.rounds + 2))
    with running(workspace, wanted, wanted.ranks) as job:
        for turn in range(wanted.rounds + 1):
            for way in _in_turn(WAYS, turn):
                steps.next(f"saving with {way}")
                fillings = range(-BUFFERS[way], 0) if turn else ()
                for filling in fillings:
                    job.ask(do="save", way=way, turn=filling)
                taken = job.ask(do="save", way=way, turn=turn)
                for earlier in fillings:
                    _remove(workspace, way, earlier)
                if turn:  # the first one makes memory and plans
                    _remove(workspace, way, turn - 1)
                    for name, seconds in taken.items():
                        results.seconds[name][way].append(seconds)
        for turn in range(wanted.rounds):
            steps.next("saving shards")
            results.collectives.append(job.ask(do="shards", turn=SHARDS + turn)["collectives"])
            _remove(workspace, STORE, SHARDS + turn)
        if disk is not None:
            steps.next("writing with fio")
            disk.write_s()
        _load(job, "load, same ranks", wanted, workspace, disk, results, steps)
    with running(workspace, wanted, wanted.others) as job:
        _load(job, "load, other ranks", wanted, workspace, disk, results, steps)
    steps.next("planning")
    if wanted.planned:
        from ckptstore_bench.dcp.planning import plan_seconds

        results.plan_s = plan_seconds(wanted.planned, wanted.rounds)
    return results


def _load(job: Job, name: str, wanted: Wanted, workspace: Workspace, disk: Fio | None, results: Results, steps: Steps) -> None:
    """What was saved last, with each way in turn, cold each time; and as much by the disk itself."""
    for turn in range(wanted.rounds):
        for way in _in_turn(WAYS if disk is None else (*WAYS, FIO), turn):
            steps.next(f"{name}: {way}")
            _make_cold(workspace)
            own_memory(2 * wanted.size_bytes)  # for who reads through the page cache, and a copy beside
            job.ask(do="connect")
            if way == FIO:
                assert disk is not None
                seconds = disk.read_s()
            else:
                seconds = job.ask(do="load", way=way, turn=wanted.rounds)["load"]
            results.seconds[name][way].append(seconds)


def _in_turn(ways: Sequence[str], turn: int) -> list[str]:
    """The ways in an order that changes from round to round."""
    first = turn % len(ways)
    return [*ways[first:], *ways[:first]]


def _remove(workspace: Workspace, way: str, turn: int) -> None:
    """What an earlier turn saved: the disk holds two of each."""
    if way == STORE:
        with workspace.connect() as store:
            store.rm(path_of(turn))
    else:
        shutil.rmtree(folder_of(workspace.folder, way, turn))


def _make_cold(workspace: Workspace) -> None:
    workspace.stop_daemon()
    places = [workspace.folder, *(tier.path for tier in workspace.scratch.tiers if tier.path is not None)]
    files = [file for place in places for file in Path(place).rglob("*") if file.is_file() and file.stat().st_size > 0]
    make_cold(files, whole_cache=False)
