"""The digests of a file's blocks and of its tensors, in one reading, block by block in order.

A tensor's digest is XXH3-128 over its bytes. Both digests of a byte come from one private copy of its block. Blocking; one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from ckptstore.safetensors_format import TensorEntry
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests, block_count, digest
from ckptstore_tiers.interface import BlockSource


@dataclass(frozen=True)
class FileDigests:
    blocks: BlockDigests
    tensors: dict[str, str]  # by key, hexadecimal


def digest_file(source: BlockSource, data_start: int, entries: Sequence[TensorEntry], scratch: memoryview) -> FileDigests:
    """Read the whole of `source`, a safetensors file whose blocks are private copies; `entries` cover its data in order."""
    running = _Tensors(data_start, entries)
    blocks = bytearray()
    for index in range(block_count(source.size_bytes)):
        view = source.block(index, scratch)
        blocks += digest(view)
        running.take(index * BLOCK_BYTES, view)
    return FileDigests(BlockDigests(source.size_bytes, bytes(blocks)), running.found)


class _Tensors:
    """Hashes tensors as their bytes come by; most lie within one block and are hashed at once."""

    def __init__(self, data_start: int, entries: Sequence[TensorEntry]) -> None:
        self._data_start = data_start
        self._entries = entries
        self._next = 0
        self._hasher = xxhash.xxh3_128()
        self.found: dict[str, str] = {}
        self._finish_empty()

    def take(self, offset: int, view: memoryview) -> None:
        end = offset + len(view)
        while self._next < len(self._entries):
            entry = self._entries[self._next]
            start, stop = self._data_start + entry.start, self._data_start + entry.end
            if start >= end:
                return
            self._hasher.update(view[max(start, offset) - offset : min(stop, end) - offset])
            if stop > end:
                return
            self._finish()
            self._finish_empty()

    def _finish(self) -> None:
        self.found[self._entries[self._next].key] = self._hasher.hexdigest()
        self._hasher.reset()
        self._next += 1

    def _finish_empty(self) -> None:
        while self._next < len(self._entries) and self._entries[self._next].size_bytes == 0:
            self._finish()
