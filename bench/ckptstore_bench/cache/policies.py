"""Which policies are compared? The cache's own, beside LRU and FIFO: each holds whole files within a limit of bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from ckptstore_bench.cache.traces import Trace
from ckptstore_server.readers.cache.policy import S3Fifo


class Policy(Protocol):
    def read(self, file: int, size_bytes: int) -> bool:
        """Whether it was held; it is now, unless it is larger than all there is."""
        ...


class Recency:
    """LRU; with `by_age`, FIFO."""

    def __init__(self, limit_bytes: int, *, by_age: bool = False) -> None:
        self._limit_bytes = limit_bytes
        self._by_age = by_age
        self._held: OrderedDict[int, int] = OrderedDict()
        self._held_bytes = 0

    def read(self, file: int, size_bytes: int) -> bool:
        if file in self._held:
            if not self._by_age:
                self._held.move_to_end(file)
            return True
        if size_bytes <= self._limit_bytes:
            self._held[file] = size_bytes
            self._held_bytes += size_bytes
            while self._held_bytes > self._limit_bytes:
                self._held_bytes -= self._held.popitem(last=False)[1]
        return False


class Own:
    """S3-FIFO by bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._policy: S3Fifo[int] = S3Fifo()

    def read(self, file: int, size_bytes: int) -> bool:
        if file in self._policy:
            self._policy.use(file)
            return True
        if size_bytes <= self._limit_bytes:
            while self._policy.held_bytes + size_bytes > self._limit_bytes:
                self._policy.evict()
            self._policy.admit(file, size_bytes)
        return False


OURS, LRU, FIFO = "s3-fifo", "lru", "fifo"
POLICIES = (OURS, LRU, FIFO)


def policy(name: str, limit_bytes: int) -> Policy:
    return Own(limit_bytes) if name == OURS else Recency(limit_bytes, by_age=name == FIFO)


@dataclass(frozen=True)
class Hits:
    """Of all reads, and of all bytes that were read."""

    of_reads: float
    of_bytes: float


def replay(trace: Trace, policy: Policy) -> Hits:
    hits = hit_bytes = read_bytes = 0
    for file, size_bytes in trace:
        read_bytes += size_bytes
        if policy.read(file, size_bytes):
            hits += 1
            hit_bytes += size_bytes
    return Hits(hits / len(trace), hit_bytes / read_bytes)
