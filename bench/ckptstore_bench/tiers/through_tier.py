"""What does ckptstore get out of the same place? The tier itself, opened anew for each setting, by the calls that the daemon makes.

A write is `put`: hashed, stored, durable and verified, as every object is. A read is `read_into`, block by block, each of them hashed, as
every reader does. A small write is `put_document`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ckptstore_bench.cold import make_cold
from ckptstore_bench.tiers.contender import SMALL_BYTES, Setting, Timing, in_threads, pieces_of
from ckptstore_tiers.checksums import digest
from ckptstore_tiers.interface import Tier
from ckptstore_tiers.sources import MemorySource

WRITTEN, READ, SMALL = "objects/bench/written~1", "objects/bench/read~1", "records/bench.json"

#: A tier with a setting; None: as it is configured.
OpenTier = Callable[[Setting | None], Tier]


class TierContender:
    def __init__(self, open_tier: OpenTier, can: Callable[[Setting], bool], *, root: Path | None = None, warm: bool = False) -> None:
        """`root`: where a posix tier's files are, to make them cold; None where the place has no cache on this machine."""
        self._open_tier = open_tier
        self._can = can
        self._file = root / READ if root is not None and not warm else None
        self._size_bytes = 0

    def can(self, setting: Setting) -> bool:
        return self._can(setting)

    def write(self, data: memoryview, setting: Setting) -> Timing:
        with self._opened(setting) as tier:
            source = MemorySource(data)
            began_s = time.perf_counter()
            tier.put(WRITTEN, source)
            seconds = time.perf_counter() - began_s
            tier.delete(WRITTEN)
        return Timing(seconds, len(data))

    def prepare(self, data: memoryview) -> None:
        with self._opened(None) as tier:
            tier.put(READ, MemorySource(data))
        self._size_bytes = len(data)

    def read(self, setting: Setting) -> Timing:
        return self._read(setting, pieces_of(self._size_bytes, setting.block_bytes))

    def random_reads(self, offsets: Sequence[int], threads: int, direct: bool | None) -> Timing:
        return self._read(Setting(SMALL_BYTES, threads, direct), [(offset, offset + SMALL_BYTES) for offset in offsets])

    def _read(self, setting: Setting, pieces: Sequence[tuple[int, int]]) -> Timing:
        if self._file is not None and not setting.direct:
            make_cold([self._file], whole_cache=False)
        with self._opened(setting) as tier:
            reader = tier.open(READ)

            def read(start: int, stop: int, buffer: memoryview) -> None:
                reader.read_into(start, buffer)
                digest(buffer)

            try:
                return in_threads(setting.threads, pieces, read)
            finally:
                reader.close()

    def small_writes(self, count: int) -> Timing:
        latencies_s, data = [], os.urandom(SMALL_BYTES)
        with self._opened(None) as tier:
            for _ in range(count):
                began_s = time.perf_counter()
                tier.put_document(SMALL, data)
                latencies_s.append(time.perf_counter() - began_s)
            tier.delete(SMALL)
        return Timing(sum(latencies_s), count * SMALL_BYTES, tuple(latencies_s))

    def close(self) -> None:
        if self._size_bytes:
            with self._opened(None) as tier:
                tier.delete(READ)

    @contextmanager
    def _opened(self, setting: Setting | None) -> Iterator[Tier]:
        tier = self._open_tier(setting)
        try:
            yield tier
        finally:
            tier.close()
