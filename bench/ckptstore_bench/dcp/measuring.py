"""How is it measured? One job saves, its ways in turn; then it and a job of another size load, cold, again in turn.

All ranks are processes of their own with a gloo group, driven over their standard input; a number is that of the slowest rank. Before
each load the files of both stores are dropped from the page cache, and the daemon is started anew, so that nothing is in memory.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from ckptstore.errors import CkptStoreError
from ckptstore_bench.cold import make_cold
from ckptstore_bench.dcp.ways import WAYS
from ckptstore_bench.running import Steps
from ckptstore_bench.workspace import Workspace


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


class Job:
    """The processes of one job."""

    def __init__(self, workspace: Workspace, wanted: Wanted, count: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments = [str(workspace.home), str(workspace.folder), str(wanted.size_bytes), str(wanted.tensors)]
        command = [sys.executable, "-m", "ckptstore_bench.dcp.rank", *arguments]
        group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        group |= {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_WORLD_SIZE": str(count)}
        environments = [os.environ | group | {"RANK": str(rank)} for rank in range(count)]
        self._ranks = [
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for environment in environments
        ]

    def __enter__(self) -> Job:
        self._answers()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for rank in self._ranks:
            if kind is not None:
                rank.kill()
            if rank.stdin is not None:
                rank.stdin.close()
        for rank in self._ranks:
            rank.wait()

    def ask(self, **order: Any) -> dict[str, float]:
        """What the slowest rank took."""
        for rank in self._ranks:
            assert rank.stdin is not None
            rank.stdin.write(json.dumps(order) + "\n")
            rank.stdin.flush()
        answers = self._answers()
        return {name: max(answer[name] for answer in answers) for name in answers[0]}

    def _answers(self) -> list[dict[str, float]]:
        lines = []
        for rank in self._ranks:
            assert rank.stdout is not None
            line = rank.stdout.readline()
            while line and not line.startswith("{"):
                line = rank.stdout.readline()
            if not line:
                raise CkptStoreError("a rank ended before it answered; what it said is above", operation="bench dcp")
            lines.append(json.loads(line))
        return lines


def measure(wanted: Wanted, workspace: Workspace, steps: Steps) -> Results:
    results = Results()
    sizes = {"load, same ranks": wanted.ranks, "load, other ranks": wanted.others}
    steps.plan((wanted.rounds + 1) * len(WAYS) + len(sizes) * wanted.rounds * len(WAYS) + 1)
    with Job(workspace, wanted, wanted.ranks) as job:
        for turn in range(wanted.rounds + 1):
            for way in _in_turn(turn):
                steps.next(f"saving with {way}")
                taken = job.ask(do="save", way=way, turn=turn)
                if turn:  # the first one makes memory and plans
                    for name, seconds in taken.items():
                        results.seconds[name][way].append(seconds)
    for name, count in sizes.items():
        with Job(workspace, wanted, count) as job:
            for turn in range(1, wanted.rounds + 1):
                for way in _in_turn(turn):
                    steps.next(f"{name}: {way}")
                    _make_cold(workspace)
                    job.ask(do="connect")
                    results.seconds[name][way].append(job.ask(do="load", way=way, turn=turn)["load"])
    steps.next("planning")
    if wanted.planned:
        from ckptstore_bench.dcp.planning import plan_seconds

        results.plan_s = plan_seconds(wanted.planned, wanted.rounds)
    return results


def _in_turn(turn: int) -> list[str]:
    """The ways in an order that changes from round to round."""
    first = turn % len(WAYS)
    return [*WAYS[first:], *WAYS[:first]]


def _make_cold(workspace: Workspace) -> None:
    workspace.stop_daemon()
    places = [workspace.folder, *(tier.path for tier in workspace.scratch.tiers if tier.path is not None)]
    files = [file for place in places for file in Path(place).rglob("*") if file.is_file() and file.stat().st_size > 0]
    make_cold(files, whole_cache=False)
