"""A leaf that is several boxes of one tensor on this rank, or one that no framework's tensor stands for: jax arrays, DCP's write items.

`TorchPieces` and `ArrayPieces` are leaves of a state that `Store.save` takes. Values; any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ckptstore.boxes import Box


@dataclass(frozen=True)
class _Pieces:
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it
    pieces: Sequence[tuple[Box, Any]]  # what this rank stores of it; none where others do


@dataclass(frozen=True)
class TorchPieces(_Pieces):
    """Pieces that are torch tensors."""


@dataclass(frozen=True)
class ArrayPieces(_Pieces):
    """Pieces that are numpy arrays."""


def piece_key(name: str, box: Box) -> str:
    """The key of one of several pieces in the rank's file."""
    return f"{name}@{','.join(map(str, box.offset))}"
