"""What does a rank's plan cost, when the state is as it was at the last save? 100,000 DTensors on one of 64 simulated ranks.

No process group exists while it is timed, so no collective can be called: the plan takes none. Copying is not in it; making the header is.
"""

from __future__ import annotations

import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from ckptstore_client.sharding.slices import ShardRequest
from ckptstore_client.staging import Staging

RANKS = 64


def plan_seconds(tensors: int, rounds: int) -> list[float]:
    """Of the second save and those after it."""
    dist.init_process_group("fake", rank=1, world_size=RANKS, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (RANKS,))
        whole = torch.Size((RANKS, 4))
        state = {
            f"layers.{number // 10}.part{number % 10}.weight": DTensor.from_local(
                torch.ones(1, 4), mesh, [Shard(0)], run_check=False, shape=whole, stride=(4, 1)
            )
            for number in range(tensors)
        }
    finally:
        dist.destroy_process_group()
    staging, request = Staging(), ShardRequest(1, RANKS, {})
    staging.plan({"model": state}, request)
    seconds = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        staging.plan({"model": state}, request)
        seconds.append(time.perf_counter() - began_s)
    return seconds
