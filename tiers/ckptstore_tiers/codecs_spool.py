"""How does an object become a compressed file before anybody knows its length? Block by block, in threads, into a spool.

A tier must know an object's size before its first byte, which nobody knows of a compressed one. So frames are collected first: in memory
if there is only one, else in a file that has no name (nothing is left of it after a crash). Compressing twice instead, once for the
size, would cost the CPU twice and fail on bytes that change in between.

A frame counts only when it was decoded again and gave the block back: a deeper replica may become the only one, so what a codec or a
processor got wrong must show now. Blocks are encoded by several threads, and written in order; as many are held as there are threads,
and one.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

from ckptstore.errors import ChecksumMismatch, TierFull, TierUnavailable
from ckptstore.failpoints import declare, failpoint
from ckptstore_tiers.checksums import DigestedBlocks, digest
from ckptstore_tiers.codecs_format import FileFormat, FrameEncoder, MalformedFile
from ckptstore_tiers.interface import BlockSource
from ckptstore_tiers.posix_errors import translated
from ckptstore_tiers.scratch import ScratchPool
from ckptstore_tiers.sources import FileSource, MemorySource

SPOOLED = declare("codec.put.spooled")


class Spool:
    """Compresses objects of one tier. Owns its threads; `close` ends them."""

    def __init__(self, folder: Path, scratch: ScratchPool, *, threads: int, tier: str) -> None:
        self._folder = folder
        self._scratch = scratch
        self._threads = threads
        self._tier = tier
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"ckptstore-{tier}-compress")

    @contextmanager
    def compressed(self, key: str, blocks: DigestedBlocks, format: FileFormat, encoder: FrameEncoder) -> Iterator[BlockSource]:
        """The compressed file of all `blocks`, for a `with` block. Raises what the source raises; TierUnavailable for the spool's disk."""
        if blocks.count <= 1:
            pieces: list[bytes] = []
            self._write(pieces.append, blocks, format, encoder, key)
            yield MemorySource(b"".join(pieces))
            return
        with self._file(key) as file:

            def write(data: bytes) -> None:
                with self._on_its_disk(key):
                    view = memoryview(data)
                    while view:
                        view = view[file.write(view) :]

            size_bytes = self._write(write, blocks, format, encoder, key)
            failpoint(SPOOLED)
            with closing(FileSource(file.fileno(), size_bytes, subject=f"spool of {key}", direct=False)) as source:
                yield source

    def _file(self, key: str) -> IO[bytes]:
        with self._on_its_disk(key):
            self._folder.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryFile(dir=self._folder, buffering=0)

    @contextmanager
    def _on_its_disk(self, key: str) -> Iterator[None]:
        """A full spool is not a full tier: evicting from the tier would not help, and does not follow."""
        try:
            with translated("put", key, self._tier):
                yield
        except TierFull as error:
            why = f"{self._folder}, where files are compressed, is full: {error.why}"
            hint = "make room for the largest file there"
            raise TierUnavailable(why, operation="put", subject=key, tier=self._tier, hint=hint) from error

    def _write(
        self, write: Callable[[bytes], object], blocks: DigestedBlocks, format: FileFormat, encoder: FrameEncoder, key: str
    ) -> int:
        """Write head, frames and table; how many bytes that is."""
        write(encoder.head)
        frame_sizes: list[int] = []
        for frame in self._frames(blocks, format, encoder, key):
            frame_sizes.append(len(frame))
            write(frame)
        table = encoder.table(frame_sizes, blocks.source.size_bytes)
        write(table)
        return len(encoder.head) + sum(frame_sizes) + len(table)

    def _frames(self, blocks: DigestedBlocks, format: FileFormat, encoder: FrameEncoder, key: str) -> Iterator[bytes]:
        """All frames, in order."""
        indices = iter(range(blocks.count))
        running: deque[Future[bytes]] = deque()

        def begin(count: int) -> None:
            running.extend(self._executor.submit(self._frame, index, blocks, format, encoder, key) for index in islice(indices, count))

        try:
            begin(self._threads + 1)
            while running:
                yield running.popleft().result()
                begin(1)
        finally:
            for one in running:
                one.cancel()
            wait(running)  # for all of them: the source is the caller's again once this has ended

    def _frame(self, index: int, blocks: DigestedBlocks, format: FileFormat, encoder: FrameEncoder, key: str) -> bytes:
        frames: list[bytes] = []

        def encode(block: memoryview) -> None:
            frame = encoder.frame(index, block)
            with self._scratch.borrow() as memory:
                decoded = memory[: len(block)]
                try:
                    format.decode(memoryview(frame), decoded)
                    good = digest(decoded) == digest(block)
                except MalformedFile:
                    good = False
            if not good:
                why = f"block {index} does not come back from its {format.name} frame: a fault of the codec or of this machine"
                raise ChecksumMismatch(why, operation="put", subject=key, tier=self._tier)
            frames.append(frame)

        with self._scratch.borrow() as scratch:
            blocks.pump(index, scratch, encode)
        return frames[0]

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
