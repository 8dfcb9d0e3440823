"""A cache on a folder of the test's own, over files upstream that a test can replace, count, hold back and break.

`Upstream` is the whole outside world of a cache: the tree that opens paths, and the origin that gives bytes. It counts what is read of
each block, which is how a test knows what was fetched twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ckptstore.errors import NotFound, StaleVersion, TierUnavailable
from ckptstore_server.readers.cache.cache import AnyCopy, Cache
from ckptstore_server.readers.cache.copy import Copy
from ckptstore_server.readers.cache.own_replica import OwnReplica
from ckptstore_server.readers.cache.room import Room
from ckptstore_server.readers.origin import FileVersion, Origin
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests
from ckptstore_tiers.scratch import ScratchPool

T = TypeVar("T")


def content(seed: int, size_bytes: int) -> bytes:
    return np.random.default_rng(seed).bytes(size_bytes)


class Upstream:
    """Implements `needs.OpensFiles` and `origin.Origin`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.own: dict[str, BlockDigests] = {}  # object id → what the catalog says of it
        self.down = False
        self.spoil: set[int] = set()  # blocks that come damaged, once each
        self.gate: threading.Event | None = None  # what is held back until the test sets it: blocks from `gate_from` on
        self.gate_from = 0
        self.reads: Counter[tuple[str, int]] = Counter()  # (version, block) → how often
        self.read_bytes = 0
        self._lock = threading.Lock()

    def write(self, path: str, data: bytes, *, own: bool = False) -> str:
        self.files[path] = data
        version = self.version_of(path)
        if own:
            self.own[version] = BlockDigests.of(data)
        return version

    def version_of(self, path: str) -> str:
        return hashlib.sha256(path.encode() + b"\0" + self.files[path]).hexdigest()[:32]

    def file(self, path: str) -> FileVersion:
        version, size_bytes = self.version_of(path), len(self.files[path])
        return FileVersion(version, path, size_bytes, 1.0, f"test:/{path}", object_id=version if version in self.own else None)

    # --- what the cache asks -------------------------------------------------------------------------------------------------------

    async def open(self, path: str, version: str = "") -> tuple[FileVersion, Origin]:
        if self.down:
            raise TierUnavailable("upstream is down", operation="open", subject=path)
        if path not in self.files:
            raise NotFound("there is no such file", operation="open", subject=path)
        file = self.file(path)
        if version not in ("", file.version):
            raise StaleVersion("it is another version now", operation="open", subject=path)
        return file, self

    def read_into(self, file: FileVersion, offset_bytes: int, into: memoryview) -> None:
        if self.gate is not None and offset_bytes // BLOCK_BYTES >= self.gate_from:
            assert self.gate.wait(60), "the test never opened its gate"
        with self._lock:
            if self.down:
                raise TierUnavailable("upstream is down", operation="read", subject=file.path)
            if file.path not in self.files or self.version_of(file.path) != file.version:
                raise StaleVersion("it is another version now", operation="read", subject=file.path)
            block = offset_bytes // BLOCK_BYTES
            self.reads[file.version, block] += 1
            self.read_bytes += len(into)
            into[:] = self.files[file.path][offset_bytes : offset_bytes + len(into)]
            if block in self.spoil:
                self.spoil.remove(block)
                into[0] ^= 1

    def digests_of(self, object_id: str) -> BlockDigests:
        return self.own[object_id]

    async def own_replica(self, file: FileVersion, origin: Origin, served: Callable[[int], None]) -> OwnReplica | None:
        return None


class StreamingUpstream(Upstream):
    """Gives several blocks by one request, as an object store does. `broken_at`: the block before which a request breaks, once."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[range] = []
        self.broken_at: int | None = None

    def read_parts(self, file: FileVersion, offset_bytes: int, size_bytes: int, parts: Iterator[memoryview]) -> None:
        first = offset_bytes // BLOCK_BYTES
        self.requests.append(range(first, first + -(-size_bytes // BLOCK_BYTES)))
        for index, view in zip(self.requests[-1], parts, strict=True):
            if index == self.broken_at:
                self.broken_at = None
                raise TierUnavailable("the connection broke", operation="read", subject=file.path)
            self.read_into(file, index * BLOCK_BYTES, view)


class CacheBed:
    """One folder and its cache, which may be ended and begun anew; async calls run on a loop of its own thread, as in the daemon."""

    def __init__(self, folder: Path, upstream: Upstream | None = None, **options: Any) -> None:
        self.folder = folder
        self.upstream = upstream or Upstream()
        self.options = options
        self.remarks: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.cache = self.begin()

    def begin(self) -> Cache:
        """A cache as a new daemon has it; one that was there before is abandoned, as by SIGKILL."""
        options = {"limit_bytes": None} | self.options
        room = Room(self.folder, limit_bytes=options.pop("limit_bytes"), mark=options.pop("mark", 1.0))
        self.cache = Cache(
            self.upstream,
            room,
            digests_of=self.upstream.digests_of,
            own_replica=self.upstream.own_replica,
            remark=lambda where, error: self.remarks.append(f"{where}: {error}"),
            scratch=ScratchPool(),
            **options,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cache.start()
        return self.cache

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 60.0) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def open(self, path: str, version: str = "") -> Copy:
        copy = self.run(self.cache.open(path, version))
        assert isinstance(copy, Copy)
        return copy

    def read(self, path: str, version: str = "") -> bytes:
        """All of a file, as a stream gives it: every block verified."""
        copy = self.run(self.cache.open(path, version))
        return b"".join(self.block(copy, index) for index in range(-(-copy.file.size_bytes // BLOCK_BYTES)))

    def block(self, copy: AnyCopy, index: int) -> bytes:
        begin = index * BLOCK_BYTES
        return self.run(copy.block(index, begin, min(begin + BLOCK_BYTES, copy.file.size_bytes)))

    def settle(self) -> None:
        """Nothing is on its way any more: what a dead daemon had begun would write into what its successor has."""
        self.cache.close()

    def data_files(self) -> list[Path]:
        return sorted((self.folder / "files").glob("*.data"))

    def close(self) -> None:
        self.cache.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextmanager
def cache_bed(folder: Path, upstream: Upstream | None = None, **options: Any) -> Iterator[CacheBed]:
    bed = CacheBed(folder, upstream, **options)
    try:
        yield bed
    finally:
        if bed.upstream.gate is not None:
            bed.upstream.gate.set()
        bed.close()
