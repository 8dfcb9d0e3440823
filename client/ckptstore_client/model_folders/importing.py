"""How does a Hugging Face folder become a checkpoint that any number of ranks loads? Each of its weight files is saved as a rank's part.

So no more than one weight file is in memory at a time, and one after the other they make one checkpoint, published at once. Its state
is {"model": {name: tensor}, "hugging_face_files": {name: bytes}}: config, tokenizer and all other small files come along, for
`export_model` to write back. Weights are read where they lie, through a private mapping.

Only safetensors: a .bin is pickle, and is refused by name.
"""

from __future__ import annotations

import mmap
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ckptstore.errors import InvalidInput
from ckptstore.part import TORCH
from ckptstore.safetensors_format import DTYPE_BITS, PREFIX_BYTES, TensorEntry, header_size_bytes, parse_header
from ckptstore.wire import EntryInfo
from ckptstore_client.frameworks import framework
from ckptstore_client.model_folders import FILES_KEY, INDEX_NAME
from ckptstore_client.store import Store

#: A file beside the weights is a config or a tokenizer; larger ones would be something else.
MAX_FILE_BYTES = 256 * 1024 * 1024
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def import_model(
    store: Store,
    folder: str | Path,
    path: str,
    *,
    replace: bool = False,
    metadata: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EntryInfo:
    """Save what a Hugging Face folder holds as a checkpoint; returns when it is published. `progress` hears of weight files."""
    source = Path(folder)
    weights, files = _contents(source)
    group = secrets.token_hex(16)
    for rank, file in enumerate(weights):
        state: dict[str, Any] = {"model": _tensors(file)}
        if rank == 0:
            state[FILES_KEY] = {name: np.frombuffer(content, np.uint8) for name, content in files.items()}
        with store.sibling(group) as client:
            pending = client.save(path, state, rank=rank, world_size=len(weights), replace=replace, metadata=metadata, shards={})
            if progress is not None:
                progress(rank + 1, len(weights))
            if rank == len(weights) - 1:
                pending.wait_published()
    return store.stat(path)


def _contents(source: Path) -> tuple[list[Path], dict[str, bytes]]:
    """The weight files, and all others with what is in them."""
    weights: list[Path] = []
    files: dict[str, bytes] = {}
    try:
        for file in sorted(source.iterdir()):
            if not file.is_file() or file.name.startswith(".") or file.name == INDEX_NAME:
                continue
            if file.suffix == ".safetensors":
                weights.append(file)
            elif file.suffix in _PICKLED:
                hint = "convert it to safetensors, or move it away"
                raise InvalidInput("it is pickle, which is not read", operation="import", subject=str(file), hint=hint)
            elif file.stat().st_size > MAX_FILE_BYTES:
                raise InvalidInput(f"it has more than {MAX_FILE_BYTES} bytes", operation="import", subject=str(file))
            else:
                files[file.name] = file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"it cannot be read: {error}", operation="import", subject=str(source)) from error
    if not weights:
        raise InvalidInput("there is no .safetensors file in it", operation="import", subject=str(source))
    return weights, files


def _tensors(file: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, on its own pages. InvalidInput if it is none."""
    size_bytes = file.stat().st_size
    with open(file, "rb") as opened:
        if size_bytes < PREFIX_BYTES:
            raise InvalidInput("it is too short for a safetensors file", operation="import", subject=str(file))
        memory = memoryview(mmap.mmap(opened.fileno(), size_bytes, access=mmap.ACCESS_COPY))
    try:
        header = parse_header(memory[: header_size_bytes(memory[:PREFIX_BYTES], size_bytes)], size_bytes)
    except InvalidInput as error:
        raise InvalidInput(error.why, operation="import", subject=str(file)) from error
    return {key: _view(memory, entry, header.data_start) for key, entry in header.tensors.items()}


def _view(memory: memoryview, entry: TensorEntry, data_start: int) -> Any:
    """The tensor where it lies; one that is not aligned to its dtype, as other writers' files may have it, as a copy."""
    start = data_start + entry.start
    if start % max(DTYPE_BITS[entry.dtype] // 8, 1):
        memory, start = memoryview(bytearray(memory[start : data_start + entry.end])), 0
    moved = TensorEntry(entry.key, entry.dtype, entry.shape, start, start + entry.size_bytes)
    return framework(TORCH).views(memory, [moved], 0)[0]
