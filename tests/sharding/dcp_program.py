"""One rank of a real gloo job that speaks DCP, as a test runs it: FSDP2 over a 2-D mesh, an optimizer, and a script's own calls.

    dcp_program.py HOME FOLDER save|die|load

Prints one JSON line at each step, and at the end a digest of what it holds, so that a test can compare bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import ckptstore
from ckptstore import Store
from ckptstore.errors import CkptStoreError
from ckptstore_client.torch import Reader, Writer


def say(event: str, **more: object) -> None:
    print(json.dumps({"event": event, "rank": dist.get_rank(), **more}), flush=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(37, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, 37, bias=False)
        self.head.weight = self.embedding.weight  # tied
        self.layers[0].bias.requires_grad_(False)  # frozen
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens) * self.scale
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        return self.head(hidden)  # type: ignore[no-any-return]


def make(seed: int) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    net = Net()
    world_size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (2, world_size // 2) if world_size % 2 == 0 else (1, world_size), mesh_dim_names=("replica", "shard"))
    for layer in net.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net, torch.optim.AdamW([parameter for parameter in net.parameters() if parameter.requires_grad], lr=1e-2)


def train(net: Net, optimizer: torch.optim.Optimizer) -> None:
    torch.manual_seed(7)
    loss = net(torch.randint(37, (4, 5))).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def state_of(net: Net, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    return {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "note": {"names": ["a", "b"], "size": (1, 2)}}


def digest(state: Any) -> str:
    """Of the whole tensors, gathered, and of everything else."""
    hasher = hashlib.sha256()

    def feed(value: Any, place: str) -> None:
        if isinstance(value, dict):
            for key, child in value.items():
                feed(child, f"{place}/{key}")
        elif isinstance(value, list | tuple):
            for number, child in enumerate(value):
                feed(child, f"{place}/{number}")
        elif isinstance(value, torch.Tensor):
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            hasher.update(place.encode() + whole.detach().contiguous().numpy().tobytes())
        else:
            hasher.update(f"{place}={value!r}".encode())

    feed(state, "")
    return hasher.hexdigest()


class Doubling(DefaultSavePlanner):
    """A planner of a user's, which changes what is saved."""

    def resolve_data(self, write_item: WriteItem) -> Any:
        data = super().resolve_data(write_item)
        return data * 2 if isinstance(data, torch.Tensor) and data.is_floating_point() else data


def save(store: Store, folder: str, net: Net, optimizer: torch.optim.Optimizer) -> None:
    """In each way: at once, in the background while training goes on, and with a planner of one's own."""
    state = state_of(net, optimizer, 12)
    told = digest(state)
    dcp.save(state, storage_writer=Writer(f"{folder}/save", store=store, step=12))
    say("saved", digest=told, published=store.stat(f"{folder}/save").world_size)
    writer = Writer(f"{folder}/async", store=store, step=13, metadata={"loss": 0.5})
    answer = dcp.async_save(state, storage_writer=writer)
    answer.staging_completion.result()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    where = answer.upload_completion.result().storage_meta.checkpoint_id
    found, pending = store.stat(where), writer.pending
    said = {"step": found.step, "metadata": found.metadata, "durability": [] if pending is None else pending.durability}
    say("async", digest=told, where=where, **said)
    dcp.save({"model": net.state_dict()}, storage_writer=Writer(f"{folder}/planner", store=store), planner=Doubling())
    doubled = {"model": {key: value * 2 for key, value in net.state_dict().items()}}
    loaded = {"model": {key: torch.zeros_like(value) for key, value in net.state_dict().items()}}
    dcp.load(loaded, storage_reader=Reader(f"{folder}/planner", store=store))
    say("planner", same=digest(doubled) == digest(loaded))


def load(store: Store, folder: str, net: Net, optimizer: torch.optim.Optimizer) -> None:
    digests = {}
    for name in ("save", "async"):
        state = state_of(net, optimizer, 0)
        dcp.load(state, storage_reader=Reader(f"{folder}/{name}", store=store))
        digests[name] = digest(state)
    say("loaded", **digests)


def die(store: Store, folder: str, net: Net, optimizer: torch.optim.Optimizer) -> None:
    state = state_of(net, optimizer, 12)
    told = digest(state)
    dist.barrier()
    Writer(f"{folder}/die", store=store).stage(state).result()
    say("staged", digest=told)
    os.kill(os.getpid(), signal.SIGKILL)


def main(home: str, folder: str, what: str) -> None:
    dist.init_process_group("gloo")
    store = ckptstore.connect(home=home, start=False)
    net, optimizer = make(seed=1 if what == "load" else 0)
    train(net, optimizer)
    {"save": save, "load": load, "die": die}[what](store, folder, net, optimizer)
    dist.barrier()
    store.close()
    sys.stdout.flush()
    os._exit(0)  # gloo's destructor waits for peers that a test may have killed


if __name__ == "__main__":
    try:
        main(*sys.argv[1:4])
    except CkptStoreError as error:
        say("error", why=str(error))
        raise
