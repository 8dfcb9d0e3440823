"""A tier whose objects may be compressed: it wraps the one that stores them, and no caller sees a difference.

Sizes, ranges and digests are those of the content; `list` alone tells stored sizes, since it would have to open every object otherwise.
What new objects become is the configuration's choice, what is stored already says itself what it is (see `codecs_reader`): so the
setting may change at any time, and plain, zstd and float files lie side by side.

    none    the bytes as they are
    zstd    a zstd file in the seekable format: `zstd -d < file` restores it
    float   a safetensors file with floating-point tensors becomes a float file (`float_file`; `python -m ckptstore_tiers.restore_file`
            restores it), anything else a zstd file

Documents, and everything else outside `objects/`, are never compressed. The stored file is called like the object, without a suffix.
What is durable when is the inner tier's promise.

Threading: any thread. A put compresses in threads that the tier owns, half as many as there are cores and at most four: training wants
the others. A read decodes in the caller's thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ckptstore.errors import AlreadyExists, ChecksumMismatch, CkptStoreError, NotFound
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests, DigestedBlocks, block_length
from ckptstore_tiers.codecs_format import FileFormat, FrameEncoder
from ckptstore_tiers.codecs_reader import FLOAT, LARGEST_FRAME_BYTES, ZSTD, open_content
from ckptstore_tiers.codecs_spool import Spool
from ckptstore_tiers.float_file import VERSION, FloatEncoder
from ckptstore_tiers.float_regions import read_regions
from ckptstore_tiers.interface import BlockSource, ObjectReader, ObjectStat, PutsMany, Tier, TierFacts, TierUsage
from ckptstore_tiers.paced import in_two_steps
from ckptstore_tiers.scratch import ScratchPool
from ckptstore_tiers.sources import MemorySource, ReaderSource
from ckptstore_tiers.transfer_figures import ReportsTransfers, TransferFigures
from ckptstore_tiers.zstd_seekable import LEVEL, ZstdEncoder

Compression = Literal["none", "zstd", "float"]

COMPRESSED_PREFIX = "objects/"
MAX_THREADS = 4
DETAILS = {
    "zstd": f"zstd, level {LEVEL}, seekable, frames of 4 MiB",
    "float": f"float, version {VERSION}: numbers split into planes, frames of 4 MiB; zstd for other files",
}


class CodecTier:
    """Implements `ckptstore_tiers.interface.Tier` over another tier. It owns the inner tier and closes it."""

    def __init__(self, inner: Tier, spool: Path, compression: Compression) -> None:
        self._inner = inner
        self._compression = compression
        self._blocks = ScratchPool(keep=MAX_THREADS)
        self._frames = ScratchPool(keep=MAX_THREADS, size_bytes=LARGEST_FRAME_BYTES)
        threads = max(1, min(MAX_THREADS, (os.cpu_count() or 1) // 2))
        self._spool = Spool(spool, self._blocks, threads=threads, tier=inner.facts.name)

    @property
    def facts(self) -> TierFacts:
        facts = self._inner.facts
        if self._compression == "none":
            return facts
        return replace(facts, details=facts.details | {"compression": DETAILS[self._compression]})

    @property
    def transfers(self) -> TransferFigures | None:
        """What the inner tier tells of its transfers, if it tells anything."""
        return self._inner.transfers if isinstance(self._inner, ReportsTransfers) else None

    # -- put --------------------

    def put(self, key: str, source: BlockSource, *, expected: BlockDigests | None = None) -> BlockDigests:
        if not key.startswith(COMPRESSED_PREFIX):
            return self._inner.put(key, source, expected=expected)
        if self._compression == "none":
            return self._put_plain(key, source, expected)
        read, paced = in_two_steps(source)
        blocks = DigestedBlocks(read, expected, subject=key, tier=self.facts.name)
        with self._spool.compressed(key, blocks, *self._codec_for(blocks)) as compressed:
            digests = blocks.digests()
            try:
                self._inner.put(key, paced(compressed))
            except (ChecksumMismatch, AlreadyExists) as refused:
                self._accept_equal_content(key, digests, refused)
        return digests

    def _put_plain(self, key: str, source: BlockSource, expected: BlockDigests | None) -> BlockDigests:
        try:
            return self._inner.put(key, source, expected=expected)
        except (ChecksumMismatch, AlreadyExists) as refused:
            if expected is None:
                raise
            self._accept_equal_content(key, expected, refused)
            return expected

    def put_many(self, files: Sequence[tuple[str, memoryview]]) -> list[BlockDigests]:
        """Small objects together, all of them or, after an error, none; one after the other where the inner tier cannot, or they are
        compressed."""
        if self._compression == "none" and isinstance(self._inner, PutsMany):
            return self._inner.put_many(files)
        digests: list[BlockDigests] = []
        try:
            for key, data in files:
                digests.append(self.put(key, MemorySource(data)))
        except BaseException:
            for key, _ in files[: len(digests)]:
                with suppress(CkptStoreError):
                    self._inner.delete(key)
            raise
        return digests

    def _codec_for(self, blocks: DigestedBlocks) -> tuple[FileFormat, FrameEncoder]:
        """The format for this object. Its first block is read once more for that."""
        if self._compression == "float" and blocks.count:
            with self._blocks.borrow() as scratch:
                regions = read_regions(blocks.source.block(0, scratch), blocks.source.size_bytes)
            if regions is not None:
                return FLOAT, FloatEncoder(regions, self._blocks)
        return ZSTD, ZstdEncoder()

    def _accept_equal_content(self, key: str, digests: BlockDigests, refused: Exception) -> None:
        """A repeated put may meet the same content in another form: by another release of zstd, or with another setting. It is stored.

        Putting the stored bytes over themselves changes nothing, and has the inner tier do what a crash left undone.
        """
        try:
            with closing(self.open(key, size_bytes=digests.size_bytes)) as stored, self._blocks.borrow() as scratch:
                for index in range(digests.count):
                    view = scratch[: block_length(index, digests.size_bytes)]
                    stored.read_into(index * BLOCK_BYTES, view)
                    digests.check(index, view, operation="put", subject=key, tier=self.facts.name)
        except (NotFound, ChecksumMismatch):
            raise refused from None
        with closing(self._inner.open(key)) as reader:
            self._inner.put(key, ReaderSource(reader))

    # -- open, stat --------------------

    def open(self, key: str, *, size_bytes: int | None = None) -> ObjectReader:
        """`size_bytes` is what the object holds. Who knows it should say so: it tells plain files that look compressed from others."""
        reader = self._inner.open(key)
        if not key.startswith(COMPRESSED_PREFIX):
            return reader
        try:
            return open_content(reader, size_bytes, key=key, tier=self.facts.name, frames=self._frames, blocks=self._blocks)
        except BaseException:
            reader.close()
            raise

    def stat(self, key: str, *, size_bytes: int | None = None) -> ObjectStat:
        """See `open` for `size_bytes`. Costs a look into a compressed object."""
        found = self._inner.stat(key)
        if found.size_bytes == size_bytes or not key.startswith(COMPRESSED_PREFIX):
            return found
        with closing(self.open(key, size_bytes=size_bytes)) as reader:
            return replace(found, size_bytes=reader.size_bytes, stored_bytes=found.size_bytes)

    def stored_bytes(self, key: str, size_bytes: int) -> int | None:
        """What an object of `size_bytes` that was just put takes if it is compressed; None if it lies there as it is."""
        if self._compression == "none" or (found := self._inner.stat(key).size_bytes) == size_bytes:
            return None
        return found

    # -- as the inner tier does --------------------

    def delete(self, key: str) -> None:
        self._inner.delete(key)

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        """Sizes are those of the stored files."""
        return self._inner.list(prefix)

    def put_document(self, key: str, data: bytes, *, exclusive: bool = False) -> None:
        self._inner.put_document(key, data, exclusive=exclusive)

    def get_document(self, key: str, *, limit_bytes: int = 1 << 30) -> bytes:
        return self._inner.get_document(key, limit_bytes=limit_bytes)

    def sweep(self, owned_ids: Iterable[str] | None) -> int:
        return self._inner.sweep(owned_ids)

    def usage(self) -> TierUsage:
        return self._inner.usage()

    def close(self) -> None:
        self._spool.close()
        self._blocks.close()
        self._frames.close()
        self._inner.close()
