"""One state for all contenders: in a memfd that every contender's process maps, so that n contenders need the memory of one.

Random like freshly trained weights (normal, σ = 0.02), so that a compressing tier does not meet zeros. The creator writes, the contenders
read; `change` is what an optimizer's step does to some of it between two saves, and only while no contender is at work.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ckptstore.errors import ConfigInvalid
from ckptstore_bench.shape import StateShape

CHUNK_ELEMENTS = 16 << 20
SIGMA = 0.02
_TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_PAGE_BYTES = 4096
#: Memory that must stay free beside what a run needs.
SPARE_BYTES = 512 << 20


class SharedState:
    """The memory, as its creator has it."""

    def __init__(self, shape: StateShape, seed: int = 0) -> None:
        self.shape = shape
        _, size_bytes = shape.offsets()
        self._fd = os.memfd_create("ckptstore-bench-state", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, size_bytes)
        self._memory = _mapped(self._fd, size_bytes)
        self._fill(np.random.default_rng(seed))

    @property
    def path(self) -> Path:
        """Where other processes of this user open it, for as long as this object is open."""
        return Path(f"/proc/{os.getpid()}/fd/{self._fd}")

    def _fill(self, generator: np.random.Generator) -> None:
        whole = np.frombuffer(self._memory, dtype=np.uint8)
        offsets, _ = self.shape.offsets()
        for tensor, offset in zip(self.shape.tensors, offsets, strict=True):
            self._fill_one(whole[offset : offset + tensor.size_bytes], tensor.dtype, generator)

    def _fill_one(self, memory: Any, dtype: str, generator: np.random.Generator) -> None:
        step_bytes = CHUNK_ELEMENTS * (4 if dtype == "float32" else 2)
        for start in range(0, len(memory), step_bytes):
            part = memory[start : start + step_bytes]
            if dtype == "float32":
                values = part.view(np.float32)
                generator.standard_normal(dtype=np.float32, out=values)
                values *= SIGMA
            else:  # bf16 is the upper half of a float32
                wide = generator.standard_normal(len(part) // 2, dtype=np.float32) * np.float32(SIGMA)
                part.view(np.uint16)[:] = wide.view(np.uint16)[1::2]

    def change(self, fraction: float, seed: int) -> int:
        """New values in the last `fraction` of the tensors, by bytes; how many bytes that were."""
        generator, whole = np.random.default_rng(seed), np.frombuffer(self._memory, dtype=np.uint8)
        offsets, _ = self.shape.offsets()
        changed = 0
        for tensor, offset in zip(reversed(self.shape.tensors), reversed(offsets), strict=True):
            if changed >= fraction * self.shape.size_bytes:
                break
            self._fill_one(whole[offset : offset + tensor.size_bytes], tensor.dtype, generator)
            changed += tensor.size_bytes
        return changed

    def close(self) -> None:
        os.close(self._fd)
        with contextlib.suppress(BufferError):  # an array of it is still alive; it goes with the process
            self._memory.close()

    def __enter__(self) -> SharedState:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_whole(path: Path, shape: StateShape) -> torch.Tensor:
    """All of the state's memory as one flat tensor of int64."""
    return torch.frombuffer(_opened(path, shape), dtype=torch.int64)


def open_state(path: Path, shape: StateShape) -> dict[str, Any]:
    """The state as a contender's process sees it: `{group: {name: tensor}, "step": 0}`, mapped and touched."""
    memory = _opened(path, shape)
    state: dict[str, Any] = {"step": 0}
    for tensor, offset in zip(shape.tensors, shape.offsets()[0], strict=True):
        dtype, count = _TORCH_DTYPES[tensor.dtype], int(np.prod(tensor.shape))
        flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=offset)
        state.setdefault(tensor.group, {})[tensor.name] = flat.reshape(tensor.shape)
    return state


def empty_like(shape: StateShape) -> dict[str, Any]:
    """Tensors of the same shapes in this process's own memory, touched, to load into."""
    state: dict[str, Any] = {"step": 0}
    for tensor in shape.tensors:
        state.setdefault(tensor.group, {})[tensor.name] = torch.zeros(tensor.shape, dtype=_TORCH_DTYPES[tensor.dtype]).fill_(1)
    return state


def flat(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """`{"group.name": tensor}`: for formats without nesting."""
    return {f"{group}.{name}": tensor for group, part in state.items() if isinstance(part, dict) for name, tensor in part.items()}


def touch(tensors: dict[str, torch.Tensor]) -> int:
    """Look at a byte of every page: a loader that only mapped its file reads it now. Every contender pays this."""
    return sum(int(tensor.reshape(-1).view(torch.uint8)[::_PAGE_BYTES].sum()) for tensor in tensors.values())


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bytes, not values: NaN differs from itself."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name].reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8)) for name in one
    )


def check_memory(need_bytes: int) -> None:
    """ConfigInvalid if so much memory is not available: a run that swaps or is killed measures nothing."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    if available - SPARE_BYTES < need_bytes:
        why = f"{need_bytes:,} bytes of memory are needed, and {max(0, available - SPARE_BYTES):,} are available"
        raise ConfigInvalid(why, operation="bench", hint="a smaller --size or fewer contenders")


def _opened(path: Path, shape: StateShape) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR)
    try:
        return _mapped(fd, shape.offsets()[1])
    finally:
        os.close(fd)


def _mapped(fd: int, size_bytes: int) -> mmap.mmap:
    """Shared, in huge pages where the kernel offers them, and present: the first touch is nobody's stall."""
    memory = mmap.mmap(fd, size_bytes)
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    with contextlib.suppress(OSError):
        memory.madvise(23)  # MADV_POPULATE_WRITE, Linux 5.14
    return memory
