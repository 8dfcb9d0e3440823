"""Safetensors files as training leaves them: numbers whose sign and exponent say little and whose mantissa is noise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ckptstore.safetensors_format import TensorEntry, build_header

#: safetensors name → bytes of a number
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I32": 4, "I64": 8, "U8": 1}


def numbers(dtype: str, count: int, seed: int = 1) -> bytes:
    """So many numbers of a layer: normally distributed, with a spread of 0.02."""
    random = np.random.default_rng(seed)
    if dtype.startswith(("I", "U")):
        return random.integers(0, 100, count * WIDTHS[dtype], dtype=np.uint8).tobytes()
    weights = random.standard_normal(count) * 0.02
    if dtype == "F64":
        return weights.tobytes()
    if dtype == "F16":
        return weights.astype(np.float16).tobytes()
    single = weights.astype(np.float32)
    if dtype == "F32":
        return single.tobytes()
    upper = (single.view(np.uint32) >> 16).astype(np.uint16)
    return upper.tobytes() if dtype == "BF16" else (upper >> 8).astype(np.uint8).tobytes()


def safetensors_file(tensors: Mapping[str, tuple[str, bytes]]) -> bytes:
    """A file of these one-dimensional tensors, in this order."""
    entries, position = [], 0
    for name, (dtype, data) in tensors.items():
        entries.append(TensorEntry(name, dtype, (len(data) // WIDTHS[dtype],), position, position + len(data)))
        position += len(data)
    return build_header(entries, {}) + b"".join(data for _, data in tensors.values())


def one_tensor(dtype: str, size_bytes: int, seed: int = 1) -> bytes:
    return safetensors_file({"w": (dtype, numbers(dtype, size_bytes // WIDTHS[dtype], seed))})


def mixed_file(seed: int = 1) -> bytes:
    """Every width, integers, and an odd number of bytes in between, so that no later number is aligned; two blocks and a tail."""
    return safetensors_file(
        {
            "embedding": ("BF16", numbers("BF16", 1_500_001, seed)),
            "step": ("I64", numbers("I64", 1)),
            "mask": ("U8", numbers("U8", 4_097)),
            "adam.m": ("F32", numbers("F32", 1_100_003, seed + 1)),
            "empty": ("F16", b""),
            "half": ("F16", numbers("F16", 200_001, seed + 2)),
            "double": ("F64", numbers("F64", 50_001, seed + 3)),
            "eight": ("F8_E4M3", numbers("F8_E4M3", 400_001, seed + 4)),
            "master": ("F32", bytes(4_000)),
        }
    )
