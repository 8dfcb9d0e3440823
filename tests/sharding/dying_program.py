"""One rank of a real gloo job whose rank 1 dies in the middle of a save, as a test runs it: FSDP2 with an optimizer, in each way to save.

    dying_program.py HOME FOLDER WAY MOMENT

WAY: save, behind, guard, incremental, dcp.save or dcp.async_save. MOMENT: "joined" (all ranks have, and this one has copied nothing),
"copied" or "handed over". Prints one JSON line with the digest of what is saved, before it is.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

import ckptstore
from ckptstore import Store
from ckptstore_client.local import LocalTransport
from ckptstore_client.staging import BoundState
from ckptstore_client.torch import Writer
from tests.sharding.dcp_program import digest, make, say, state_of, train
from tests.until import until

VICTIM = 1


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def prepare_to_die(store: Store, path: str, moment: str) -> None:
    copy, hand_over = BoundState.copy, LocalTransport.hand_over

    def all_joined() -> bool:
        return any(line.path == path and line.joined == dist.get_world_size() for line in store.status().attempts)

    def dying_copy(self: BoundState, *arguments: Any) -> None:
        if moment == "joined":
            until("the daemon knows of all ranks", all_joined)
            die()
        copy(self, *arguments)

    def dying_hand_over(self: LocalTransport, *arguments: Any) -> None:
        if moment == "copied":
            die()
        hand_over(self, *arguments)
        die()

    BoundState.copy = dying_copy  # type: ignore[method-assign]
    LocalTransport.hand_over = dying_hand_over  # type: ignore[method-assign]


def save_and_wait(store: Store, path: str, state: Any, optimizer: torch.optim.Optimizer, **options: Any) -> None:
    pending = store.save(path, state, **options)
    if "guard" in options:
        optimizer.step()
    pending.wait("nvme", timeout_s=60)


def save_by_dcp(store: Store, path: str, state: Any, optimizer: torch.optim.Optimizer) -> None:
    dcp.save(state, storage_writer=Writer(path, store=store))


def save_by_async_dcp(store: Store, path: str, state: Any, optimizer: torch.optim.Optimizer) -> None:
    answer = dcp.async_save(state, storage_writer=Writer(path, store=store))
    answer.staging_completion.result()
    answer.upload_completion.result()


def way_of(name: str, optimizer: torch.optim.Optimizer) -> Callable[[Store, str, Any, torch.optim.Optimizer], None]:
    if name == "dcp.save":
        return save_by_dcp
    if name == "dcp.async_save":
        return save_by_async_dcp
    options: dict[str, Any] = {
        "save": {},
        "behind": {"behind": True},
        "guard": {"guard": optimizer},
        "incremental": {"incremental": True},
    }[name]
    return lambda store, path, state, optimizer: save_and_wait(store, path, state, optimizer, shards={}, **options)


def main(home: str, folder: str, name: str, moment: str) -> None:
    dist.init_process_group("gloo")
    store = ckptstore.connect(home=home, start=False)
    net, optimizer = make(seed=0)
    train(net, optimizer)
    way = way_of(name, optimizer)
    if name == "incremental":  # which has something to refer to
        way(store, f"{folder}/base", state_of(net, optimizer, 11), optimizer)
        with torch.no_grad():
            net.layers[1].weight.mul_(2)
    state = state_of(net, optimizer, 12)
    say("saving", digest=digest(state))
    dist.barrier()
    if dist.get_rank() == VICTIM:
        prepare_to_die(store, f"{folder}/x", moment)
    try:
        way(store, f"{folder}/x", state, optimizer)
    finally:
        sys.stdout.flush()
        os._exit(0)  # gloo's destructor waits for the peer that is dead


if __name__ == "__main__":
    main(*sys.argv[1:5])
