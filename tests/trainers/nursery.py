"""Runs a script in processes forked from one that has its imports done, since they take longer than all the rest.

    python nursery.py SCRIPT

One line of JSON in, `{"folder": …, "killed_at": n}`, and one line out when that process is over: its exit code, negative for a
signal. With `killed_at` it kills itself with SIGKILL when the n-th step of any optimizer is about to begin.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
import traceback

from torch.optim.optimizer import register_optimizer_step_pre_hook


def run(folder: str, killed_at: int) -> None:
    begun = 0

    def count(*_: object) -> None:
        nonlocal begun
        begun += 1
        if begun == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_pre_hook(count)
    os.dup2(2, 1)
    sys.argv = [SCRIPT, folder]
    runpy.run_path(SCRIPT, run_name="__main__")


SCRIPT = sys.argv[1]
runpy.run_path(SCRIPT, run_name="imports")
importlib.import_module("ckptstore_client.local")
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            run(**json.loads(line))
        except BaseException:  # noqa: BLE001 - the child of a fork never comes back into the loop
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
