"""How do a stored tensor's bytes become numbers that numpy can add up, also those that numpy has no type for? A slab at a time.

bfloat16 and the 8-bit floats are read as the words that they are stored in, and turned into doubles here, exactly, without torch. Their
encodings: IEEE 754 for bfloat16 and E5M2, the OCP formats for E4M3 and E8M0, and the FNUZ variants of AMD and Graphcore.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache
from math import prod
from typing import Any

import numpy as np

from ckptstore.boxes import Box
from ckptstore.errors import InvalidInput
from ckptstore.safetensors_format import DTYPE_BITS
from ckptstore.shards import Spread
from ckptstore_client.rank_file import RankFile
from ckptstore_client.sharding.filling_boxes import Want, fill_boxes
from ckptstore_client.tensors_numpy import DTYPES, NumpyArrays

Array = np.ndarray[Any, np.dtype[Any]]
OpenPart = Callable[[int], AbstractContextManager[RankFile]]

#: What is read of a tensor at once, in bytes.
SLAB_BYTES = 32 << 20
#: Elements that are turned into doubles at once.
NUMBERS_AT_ONCE = 1 << 20
#: exponent bits, mantissa bits, bias, and what the highest codes mean
_FLOATS_OF_8_BITS = {
    "F8_E5M2": (5, 2, 15, "ieee"),
    "F8_E4M3": (4, 3, 7, "finite"),
    "F8_E5M2FNUZ": (5, 2, 16, "one nan"),
    "F8_E4M3FNUZ": (4, 3, 8, "one nan"),
}
_WORDS: dict[str, np.dtype[Any]] = {name: np.dtype(np.uint8) for name in (*_FLOATS_OF_8_BITS, "F8_E8M0")}
_WORDS["BF16"] = np.dtype("<u2")


class _Stored(NumpyArrays):
    """Arrays of the words that tensors are stored in."""

    def strided(self, buffer: memoryview, start: int, dtype: str, size: Sequence[int], strides: Sequence[int]) -> Array:
        native = stored_as(dtype)
        return np.ndarray(tuple(size), native, buffer, start, [stride * native.itemsize for stride in strides])


_STORED = _Stored()


def stored_as(dtype: str) -> np.dtype[Any]:
    """InvalidInput for numbers that do not fill whole bytes."""
    native: np.dtype[Any] | None = _WORDS.get(dtype) or DTYPES.get(dtype)
    if native is None:
        raise InvalidInput(f"numbers of type {dtype} are not looked into", operation="read tensor")
    return native


def read_slabs(spread: Spread, open_part: OpenPart) -> Iterator[Array]:
    """The tensor in order, as flat arrays of stored words; only its own blocks are read, and a bounded number of them held."""
    native = stored_as(spread.dtype)
    for box in slabs(spread.shape, SLAB_BYTES * 8 // DTYPE_BITS[spread.dtype]):
        words = np.empty(box.size, native)
        fill_boxes([Want(spread, box, _STORED, words)], open_part)
        yield words.reshape(-1)


def slabs(shape: Sequence[int], most: int) -> Iterator[Box]:
    """Boxes of at most so many elements that make up the whole, in row-major order."""
    if not shape:
        yield Box((), ())
    if not shape or not prod(shape):
        return
    axis, inner = 0, prod(shape[1:])
    while inner > most:
        axis += 1
        inner = prod(shape[axis + 1 :])
    outer, rest = tuple(shape[:axis]), tuple(shape[axis + 1 :])
    rows = max(1, most // inner)
    for position in np.ndindex(*outer):
        for start in range(0, shape[axis], rows):
            count = min(rows, shape[axis] - start)
            yield Box((*position, start, *(0 for _ in rest)), (*(1 for _ in outer), count, *rest))


def as_numbers(words: Array, dtype: str) -> Array:
    """Doubles; complex numbers stay complex, and integers and truth values what they are."""
    if dtype == "BF16":
        with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
            return (words.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype == "F8_E8M0":
        return np.where(words == 0xFF, np.nan, np.ldexp(1.0, words.astype(np.int32) - 127))
    if dtype in _FLOATS_OF_8_BITS:
        return _table(dtype)[words]
    return words.astype(np.float64) if words.dtype.kind == "f" else words


@cache
def _table(dtype: str) -> Array:
    exponent_bits, mantissa_bits, bias, highest = _FLOATS_OF_8_BITS[dtype]
    codes = np.arange(256)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    fraction = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    size = np.where(exponent == 0, np.ldexp(fraction, 1 - bias), np.ldexp(1 + fraction, exponent - bias))
    top = exponent == (1 << exponent_bits) - 1
    if highest == "ieee":
        size[top] = np.where(fraction[top] == 0, np.inf, np.nan)
    elif highest == "finite":
        size[top & (codes & 0b111 == 0b111)] = np.nan
    values = np.where(codes < 128, size, -size)
    if highest == "one nan":
        values[0x80] = np.nan
    return values
