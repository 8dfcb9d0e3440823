"""One rank of the measured job: `python -m ckptstore_bench.dcp.rank HOME FOLDER BYTES TENSORS`, with a launcher's environment.

Reads a line of JSON for each thing to do, and answers with one: {"do": "save"|"load"|"shards"|"connect", "way": …, "turn": n} → numbers.
The state is of FSDP's kind: each tensor's rows are spread over all ranks. Training changes it between two saves.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import ckptstore
from ckptstore_bench.dcp.collectives import collectives_in
from ckptstore_bench.dcp.ways import path_of, ways
from ckptstore_client import Store


def state_of(size_bytes: int, tensors: int) -> dict[str, DTensor]:
    """`tensors` matrices of float32 with 1,024 columns."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows = max(size_bytes // tensors // 4096, mesh.size())
    state = {}
    for number in range(tensors):
        own = len(torch.arange(rows).chunk(mesh.size())[dist.get_rank()])
        local, shape = torch.empty(own, 1024).normal_(), torch.Size((rows, 1024))
        state[f"layer{number}.weight"] = DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=(1024, 1))
    return state


def main(home: str, folder: str, size_bytes: int, tensors: int) -> None:
    dist.init_process_group("gloo")
    store = ckptstore.connect(home=home)
    contenders = ways(store, Path(folder))
    state = state_of(size_bytes, tensors)
    print(json.dumps({"ready": dist.get_rank()}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        dist.barrier()
        began_s = time.perf_counter()
        if order["do"] == "connect":
            answer = {"pid": float(store.hello().pid)}
        elif order["do"] == "save":
            answer = _save(state, contenders[order["way"]].save(order["turn"]))
        elif order["do"] == "shards":
            answer = {"collectives": _save_shards(store, state, path_of(order["turn"]))}
        else:
            load({"model": state}, **contenders[order["way"]].load(order["turn"]))
            answer = {"load": time.perf_counter() - began_s}
        print(json.dumps(answer), flush=True)
    for way in contenders.values():
        way.close()
    store.close()
    os._exit(0)


def _save_shards(store: Store, state: dict[str, DTensor], path: str) -> int:
    """How many collectives a save by `Store.save` itself takes."""
    dist.barrier()
    return collectives_in(lambda: store.save(path, {"model": state}).wait_published(timeout_s=600))


def _save(state: dict[str, DTensor], arguments: dict[str, Any]) -> dict[str, float]:
    """Seconds until training may go on, and until all of it is durable. The ranks begin together, as a training step leaves them."""
    with torch.no_grad():
        for value in state.values():
            value.to_local().add_(1e-6)
    dist.barrier()
    began_s = time.perf_counter()
    answer: Any = async_save({"model": state}, **arguments)
    stall_s = time.perf_counter() - began_s
    getattr(answer, "upload_completion", answer).result()
    return {"stall": stall_s, "durable": time.perf_counter() - began_s}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
