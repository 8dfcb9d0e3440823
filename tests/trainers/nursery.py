"""Runs a script in processes forked from one that has its imports done, since they take longer than all the rest.

    python nursery.py SCRIPT

One line of JSON in, `{"folder": …, "killed_at": n, "ranks": m}`, and one line out when its m processes are over: the exit code of the
first that did not end well, negative for a signal, or 0. They are started as torchrun does it; when one dies, so do the others. With
`killed_at` each kills itself with SIGKILL when the n-th step of any optimizer is about to begin.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ckptstore_bench.ports import free_port


def run(folder: str, killed_at: int) -> None:
    begun = 0

    def count(*_: object) -> None:
        nonlocal begun
        begun += 1
        if begun == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_pre_hook(count)
    sys.argv = [SCRIPT, folder]
    runpy.run_path(SCRIPT, run_name="__main__")


def of_torchrun(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The environment of one process of a job on this machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def forked(folder: str, killed_at: int, environment: dict[str, str]) -> int:
    child = os.fork()
    if child == 0:
        try:
            os.environ.update(environment)
            run(folder, killed_at)
        except BaseException:  # noqa: BLE001 - the child of a fork never comes back into the loop
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def first_failure(children: set[int]) -> int:
    """Wait for all. When one fails the others are killed, as a launcher does: they would wait for it for ever."""
    failure = 0
    while children:
        child, status = os.wait()
        children.remove(child)
        if status and not failure:
            failure = os.waitstatus_to_exitcode(status)
            for other in children:
                os.kill(other, signal.SIGKILL)
    return failure


def prepare() -> None:
    """What each process would do anew, for seconds: import what is imported at the first use."""
    torch.optim.SGD([torch.zeros(1)])
    importlib.import_module("ckptstore_client.local")
    if (deepspeed := sys.modules.get("deepspeed")) is not None:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
        # Kernels for collectives among processes of a CPU would be compiled for a minute; it does without them, too.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what scripts and frameworks print belongs into the log
SCRIPT = sys.argv[1]
sys.path.insert(0, str(Path(SCRIPT).parent))  # as `python SCRIPT` does
runpy.run_path(SCRIPT, run_name="imports")
prepare()
for line in sys.stdin:
    asked = json.loads(line)
    count, port = asked["ranks"], free_port()
    environments = [of_torchrun(rank, count, port) if count > 1 else {} for rank in range(count)]
    children = {forked(asked["folder"], asked["killed_at"], environment) for environment in environments}
    print(first_failure(children), file=answers, flush=True)
