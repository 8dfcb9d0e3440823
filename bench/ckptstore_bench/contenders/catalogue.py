"""Which contenders are there? Names as `--against` takes them, what each is, where its class is, and which package it needs.

Nothing here imports a peer: the class is imported in the contender's own process, so that one that cannot be imported harms nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ckptstore.errors import InvalidInput

_HERE = "ckptstore_bench.contenders"


@dataclass(frozen=True)
class Contender:
    """`factory` is `module:class`; the class is called with the Setup. A `limit` is no competitor: what the machine itself can do."""

    name: str
    what: str
    factory: str
    package: str | None = None
    role: Literal["store", "limit", "peer"] = "peer"


def _named(*contenders: Contender) -> dict[str, Contender]:
    return {contender.name: contender for contender in contenders}


SAVERS = _named(
    Contender("ckptstore", "store.save", f"{_HERE}.store:StoreSaver", role="store"),
    Contender("ckptstore guard", "store.save(guard=optimizer), computing meanwhile", f"{_HERE}.store:GuardedSaver", role="store"),
    Contender("memory copy", "the same bytes into warm memory, in one piece", f"{_HERE}.limits:MemoryCopy", role="limit"),
    Contender("fio", "the same bytes, O_DIRECT, 4 MiB blocks, four in flight, fsync", f"{_HERE}.limits:FioWrite", role="limit"),
    Contender("dcp", "dcp.save, blocking", f"{_HERE}.dcp:Blocking", "torch"),
    Contender("dcp-async", "dcp.async_save, staging into shared memory it keeps, cached plans", f"{_HERE}.dcp:AsyncThread", "torch"),
    Contender("dcp-process", "the same, AsyncCheckpointerType.PROCESS", f"{_HERE}.dcp:AsyncProcess", "torch"),
    Contender("dcp-default", "dcp.async_save as called, without a stager", f"{_HERE}.dcp:AsCalled", "torch"),
    Contender("torch", "torch.save, then fsync", f"{_HERE}.torch_file:TorchSaver", "torch"),
    Contender("safetensors", "safetensors.torch.save_file, then fsync", f"{_HERE}.safetensors_file:SafetensorsSaver", "safetensors"),
    Contender("orbax", "orbax AsyncCheckpointer, PyTree of numpy arrays, then fsync", f"{_HERE}.orbax:OrbaxSaver", "orbax-checkpoint"),
    Contender("torchsnapshot", "Snapshot.async_take, then fsync", f"{_HERE}.torchsnapshot:SnapshotSaver", "torchsnapshot"),
    Contender("s3torchconnector", "torch.save into S3Checkpoint.writer", f"{_HERE}.s3_connector:S3Saver", "s3torchconnector"),
)

LOADERS = _named(
    Contender("ckptstore into", "store.load(into=…), verified", f"{_HERE}.store:StoreIntoLoader", role="store"),
    Contender("ckptstore", "store.load into new tensors, verified", f"{_HERE}.store:StoreLoader", role="store"),
    Contender("memory copy", "the same bytes out of warm memory, in one piece", f"{_HERE}.limits:MemoryRead", role="limit"),
    Contender("fio", "the same bytes, O_DIRECT, 4 MiB blocks, four in flight", f"{_HERE}.limits:FioRead", role="limit"),
    Contender("torch", "torch.load(weights_only=True)", f"{_HERE}.torch_file:TorchLoader", "torch"),
    Contender("torch-mmap", "torch.load(mmap=True), every page touched", f"{_HERE}.torch_file:TorchMmapLoader", "torch"),
    Contender(
        "safetensors", "safetensors.torch.load_file, every page touched", f"{_HERE}.safetensors_file:SafetensorsLoader", "safetensors"
    ),
    Contender("dcp", "dcp.load into existing tensors", f"{_HERE}.dcp:DcpLoader", "torch"),
    Contender("runai", "Run:ai SafetensorsStreamer, 16 threads", f"{_HERE}.runai:RunaiLoader", "runai-model-streamer"),
    Contender("fastsafetensors", "SafeTensorsFileLoader, to the CPU, no GDS", f"{_HERE}.fast_safetensors:FastLoader", "fastsafetensors"),
    Contender("s3torchconnector", "torch.load from S3Checkpoint.reader", f"{_HERE}.s3_connector:S3Loader", "s3torchconnector"),
)


def chosen(known: dict[str, Contender], against: str) -> list[Contender]:
    """The store, the limits, and the peers of a list as `--against` takes it (`all` for every one). InvalidInput for an unknown name."""
    peers = {name: contender for name, contender in known.items() if contender.role == "peer"}
    asked = [name for part in against.split(",") if (name := part.strip())]
    if asked == ["all"]:
        asked = list(peers)
    if unknown := [name for name in asked if name not in peers]:
        raise InvalidInput(
            f"there is no peer {', '.join(unknown)}", operation="bench", subject="--against", hint=f"known are {', '.join(peers)}"
        )
    return [contender for contender in known.values() if contender.role != "peer" or contender.name in asked]


def packages_of(contenders: list[Contender]) -> list[str]:
    """Whose versions stand in the report."""
    return sorted({contender.package for contender in contenders if contender.package is not None})
