"""One rank of a small distributed job, as a test runs it: joins a gloo group, saves what it is told to, says what happened.

    rank_program.py HOME PATH VALUE [--die before-save|before-hand-over|after-snapshot] [--on-busy MODE] [--wait TIER] [--go FILE]

Prints one JSON line at each step. `VALUE` fills the tensors, so that a test can tell incarnations apart.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

import ckptstore
from ckptstore.errors import CkptStoreError
from ckptstore_client.local import LocalTransport


def say(event: str, **more: object) -> None:
    print(json.dumps({"event": event, "rank": dist.get_rank(), **more}), flush=True)


def await_file(file: Path) -> None:
    deadline = time.monotonic() + 120
    while not file.exists():
        if time.monotonic() > deadline:
            raise SystemExit(f"{file} never came")
        time.sleep(0.01)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def state_of(rank: int, value: int) -> dict[str, object]:
    return {"model": {"w": torch.full((257, 33), float(value)), "rank": torch.tensor([rank])}, "value": value, "rank": rank}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("home")
    parser.add_argument("path")
    parser.add_argument("value", type=int)
    parser.add_argument("--die", default="")
    parser.add_argument("--on-busy", default="wait")
    parser.add_argument("--wait", default="nvme")
    parser.add_argument("--go", default="")
    parser.add_argument("--repeat", type=int, default=1)
    given = parser.parse_args()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    store = ckptstore.connect(home=given.home, start=False)
    warm = store.save(f"{given.path}-warm-{given.value}", state_of(rank, given.value))  # agrees on the group's token while all are alive
    warm.wait("nvme", timeout_s=60)
    dist.barrier()
    say("ready")
    for turn in range(given.repeat):
        if given.go:
            await_file(Path(f"{given.go}.{turn}" if turn else given.go))
        try:
            if given.die == "before-save":
                die()
            if given.die == "before-hand-over":
                LocalTransport.hand_over = lambda *_, **__: die()  # type: ignore[method-assign]
            path = given.path if given.repeat == 1 else f"{given.path}-{turn}"
            pending = store.save(path, state_of(rank, given.value + turn), on_busy=given.on_busy)
            say("saved", skipped=pending.skipped)
            if given.die == "after-snapshot":
                pending.wait("snapshot", timeout_s=60)
                say("snapshot")
                die()
            pending.wait(given.wait, timeout_s=60)
            say("durable", durability=list(pending.durability))
        except CkptStoreError as error:
            say("error", code=error.code, why=str(error))
    say("done")
    dist.barrier()
    store.close()
    sys.stdout.flush()
    os._exit(0)  # gloo's destructor waits for peers that a test may have killed


if __name__ == "__main__":
    main()
