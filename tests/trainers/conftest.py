"""One daemon for all trainers, and the scripts of docs/examples run as users run them: whole, or killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ckptstore
from ckptstore_client.store import Store
from tests.daemon_process import DaemonProcess, write_config
from tests.until import until

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NURSERY = Path(__file__).with_name("nursery.py")
LOG = "programs.log"


class Place:
    """A running store, and what runs against it."""

    def __init__(self, home: Path, store: Store, nursery: subprocess.Popen[str]) -> None:
        self.home = home
        self.store = store
        self._nursery = nursery

    def run(self, folder: str, *, killed_at: int = 0, ranks: int = 1) -> None:
        """The example on so many ranks, from its begin to its end; or until the step at whose begin it is killed."""
        assert self._nursery.stdin is not None and self._nursery.stdout is not None
        self._nursery.stdin.write(json.dumps({"folder": folder, "killed_at": killed_at, "ranks": ranks}) + "\n")
        self._nursery.stdin.flush()
        ended = int(self._nursery.stdout.readline())
        assert ended == (-signal.SIGKILL if killed_at else 0), f"it ended with {ended}:\n{(self.home / LOG).read_text()[-4000:]}"

    def steps(self, folder: str) -> list[int]:
        """Of the checkpoints that are published, once none is on its way."""
        until("saves are over", lambda: not self.store.status().attempts)
        return sorted(entry.step for entry in self.store.ls(folder) if entry.step is not None)

    def whole_and_resumed(self, name: str, killed_at: int, ranks: int = 1) -> tuple[Any, Any, list[int]]:
        """The last checkpoint of a run without an end before its end, that of one killed and started again, and what the kill left.

        A checkpoint is what each of its ranks saved.
        """
        self.run(f"/{name}/whole", ranks=ranks)
        self.run(f"/{name}/killed", killed_at=killed_at, ranks=ranks)
        left = self.steps(f"/{name}/killed")
        self.run(f"/{name}/killed", ranks=ranks)
        assert self.steps(f"/{name}/killed") == self.steps(f"/{name}/whole")
        whole, killed = ([self.store.load(f"/{name}/{run}/@latest", rank=rank) for rank in range(ranks)] for run in ("whole", "killed"))
        return whole, killed, left


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """The places where two states are not the same, bit for bit."""
    if type(one) is not type(other):
        return [f"{place}: {type(one)} and {type(other)}"]
    if isinstance(one, dict):
        found = [] if list(one) == list(other) else [f"{place}: keys {list(one)} and {list(other)}"]
        return found + [line for key in one.keys() & other.keys() for line in differences(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, list | tuple):
        found = [] if len(one) == len(other) else [f"{place}: {len(one)} and {len(other)} items"]
        return found + [line for n, pair in enumerate(zip(one, other, strict=False)) for line in differences(*pair, f"{place}/{n}")]
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and _bits(one) == _bits(other)
    elif isinstance(one, np.ndarray):
        same = one.dtype == other.dtype and one.tobytes() == other.tobytes()
    else:
        same = one == other
    return [] if same else [place]


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def place_of(folder: Path, example: str, *, scripts: Path = EXAMPLES) -> Iterator[Place]:
    """A place where one of the examples, or another such script, can be run; for a fixture of a test file."""
    write_config(folder, tiers=[{"name": "nvme", "kind": "posix", "path": folder / "nvme"}], grace_s=0)
    environment = os.environ | {"CKPTSTORE_HOME": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(NURSERY), str(scripts / f"{example}_run.py")]
    with DaemonProcess(folder), ckptstore.connect(home=folder, start=False) as connected, open(folder / LOG, "w") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        with process:
            try:
                yield Place(folder, connected, process)
            finally:
                process.kill()
