"""A state's file in memory, and the client's own reader on it, with the file's block digests, as it reads a replica."""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ckptstore.errors import NotFound
from ckptstore.wire import FileInfo
from ckptstore_client.loading import load_state
from ckptstore_client.reading import VerifiedObject
from ckptstore_client.replicas import MappedReplica, OpenFile, Replica, SegmentMapping
from ckptstore_client.staging import Staging
from ckptstore_tiers.checksums import BlockDigests


@dataclass
class Replicas:
    """The replicas of one object, by tier, as a daemon would open them; `reports` is what it was told."""

    bytes_by_tier: dict[str, bytes]
    reports: list[tuple[str, int]] = field(default_factory=list)

    def openable(self, object_id: str, *, recall: bool = True) -> list[str]:
        return list(self.bytes_by_tier)

    def open(self, object_id: str, tier: str) -> Replica:
        data = self.bytes_by_tier[tier]
        fd = os.memfd_create("replica")
        os.write(fd, data)
        if tier != "memory":
            return OpenFile(fd, tier, size_bytes=len(data))
        replica = MappedReplica(SegmentMapping(fd), size_bytes=len(data))
        os.close(fd)
        return replica

    def stream(self, object_id: str, *, recall: bool = True) -> Replica:
        return NoStream()

    def report_damage(self, object_id: str, tier: str, block: int) -> None:
        self.reports.append((tier, block))


class NoStream:
    tier = "stream"
    bounces = True

    def read(self, offset: int, views: Any, *, again: bool) -> None:
        raise NotFound("no replica is left", operation="read")

    def close(self) -> None:
        """Nothing is open."""


def staged(state: Any, staging: Staging | None = None) -> bytes:
    """The file that the state becomes."""
    staging = staging or Staging()
    plan = staging.plan(state)
    segment = bytearray(b"\xa5" * (plan.size_bytes + 100))
    staging.copy(plan, memoryview(segment))
    return bytes(segment[: plan.size_bytes])


def reader(data: bytes, source: Replicas | None = None) -> VerifiedObject:
    digests = BlockDigests.of(data)
    file = FileInfo(object_id="0" * 32, name="rank-0", rank=0, size_bytes=len(data), digest=digests.root, blocks=digests.blocks)
    return VerifiedObject(file, source or Replicas({"memory": data}), operation="load", path="/a")


def loaded(data: bytes, *, into: Any = None, only: Any = None, tier: str = "memory") -> Any:
    with reader(data, Replicas({tier: data})) as source:
        return load_state(source, into, only)


def round_trip(state: Any) -> Any:
    data = staged(state)
    from_memory, from_file = loaded(data), loaded(data, tier="nvme")
    assert_identical(from_memory, from_file)
    return from_memory


def assert_identical(left: Any, right: Any, place: str = "") -> None:
    """Same types, same bits."""
    assert type(left) is type(right), place
    if isinstance(left, torch.Tensor):
        assert left.dtype is right.dtype, place
        assert left.shape == right.shape, place
        assert tensor_bits(left) == tensor_bits(right), place
    elif isinstance(left, np.ndarray):
        assert (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes()), place
    elif isinstance(left, dict):
        assert [(type(key), key) for key in left] == [(type(key), key) for key in right], place
        for key in left:
            assert_identical(left[key], right[key], f"{place}/{key}")
    elif type(left) in (list, tuple):
        assert len(left) == len(right), place
        for position, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_identical(a, b, f"{place}/{position}")
    elif isinstance(left, float):
        assert struct.pack("d", left) == struct.pack("d", right), place
    elif isinstance(left, np.generic):
        assert left.tobytes() == right.tobytes(), place
    elif isinstance(left, complex):
        assert struct.pack("dd", left.real, left.imag) == struct.pack("dd", right.real, right.imag), place
    else:
        assert left == right, place


def tensor_bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().resolve_conj().resolve_neg()
    if flat.numel() == 0:
        return b""
    flat = flat.view(torch.uint8) if flat.dtype is torch.float4_e2m1fn_x2 else flat
    return bytes(flat.contiguous().reshape(-1).view(torch.uint8).numpy())


def random_tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Random bits, NaNs with payloads among them."""
    size_bytes = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    if size_bytes == 0:
        return torch.empty(shape, dtype=dtype)
    raw = torch.from_numpy(np.frombuffer(os.urandom(size_bytes), np.uint8).copy())
    raw = raw % 2 if dtype is torch.bool else raw
    return raw.view(dtype).reshape(shape)
