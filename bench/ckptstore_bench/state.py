"""What is saved and loaded here: a state of so many bytes in 64 tensors, and what a plain memory copy of it costs."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from typing import Any

import torch

TENSORS = 64
_PAGE_BYTES = 4096


def make_state(size_bytes: int, seed: int = 0) -> dict[str, Any]:
    """`{"model": {name: float32 tensor}, "step": 0}`, random and touched."""
    generator = torch.Generator().manual_seed(seed)
    elements = size_bytes // TENSORS // 4
    return {"model": {f"layer{i:02d}.weight": torch.randn(elements, generator=generator) for i in range(TENSORS)}, "step": 0}


def tensors_of(state: dict[str, Any]) -> list[torch.Tensor]:
    return list(state["model"].values())


def touch(tensors: Iterable[torch.Tensor]) -> int:
    """Look at a byte of every page: a loader that only mapped its file reads it now. Every contender pays this."""
    return sum(int(tensor.reshape(-1).view(torch.uint8)[::_PAGE_BYTES].sum()) for tensor in tensors)


def same_bits(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors_of(one), tensors_of(other), strict=True))


class WarmCopy:
    """This process's memory copy: the same tensors into shared memory that is mapped and was written before, by the same call of torch."""

    def __init__(self, state: dict[str, Any]) -> None:
        self._sources = tensors_of(state)
        self._memory = mmap.mmap(-1, sum(tensor.nbytes for tensor in self._sources))
        whole = torch.frombuffer(self._memory, dtype=torch.float32)
        self._destinations = list(torch.split(whole, [tensor.numel() for tensor in self._sources]))
        self()

    def __call__(self) -> None:
        torch._foreach_copy_(self._destinations, self._sources)
