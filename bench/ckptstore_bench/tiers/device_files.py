"""What does a file system do by itself? The calls that store a file safely, and read it, made by a few lines of `os`.

Writing is: create, preallocate, pwrite by several threads, fsync, rename, fsync of the folder: what the posix tier does, without hashes,
catalog or checks. Reading is pread by several threads. Buffered reads are cold: the file is dropped from the page cache first, and the
measurement refuses where it stays.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from pathlib import Path

from ckptstore.errors import TierFull, TierUnavailable
from ckptstore_bench.cold import make_cold
from ckptstore_bench.tiers.contender import SMALL_BYTES, Setting, Timing, aligned, in_threads, pieces_of


class FileDevice:
    """Plain files in `folder`, which is made, and removed by `close`."""

    def __init__(self, folder: Path, tier: str, *, warm: bool = False) -> None:
        self._folder = folder
        self._tier = tier
        self._warm = warm
        self._file = folder / "device.read"
        self._size_bytes = 0
        folder.mkdir(parents=True, exist_ok=True)

    def can(self, setting: Setting) -> bool:
        return True

    def write(self, data: memoryview, setting: Setting) -> Timing:
        place = self._folder / "device.write"
        try:
            return self._write(place, data, setting)
        except OSError as error:
            raise self._translated(error, "write") from error
        finally:
            place.unlink(missing_ok=True)
            place.with_suffix(".tmp").unlink(missing_ok=True)

    def _write(self, place: Path, data: memoryview, setting: Setting) -> Timing:
        unfinished = place.with_suffix(".tmp")
        began_s = time.perf_counter()
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | (os.O_DIRECT if setting.direct else 0), 0o600)
        try:
            _preallocate(fd, len(data))
            calls = in_threads(
                setting.threads,
                pieces_of(len(data), setting.block_bytes),
                lambda start, stop, _: _write_all(fd, data[start:stop], start),
            )
            os.fsync(fd)
        finally:
            os.close(fd)
        unfinished.rename(place)
        _sync_folder(self._folder)
        return Timing(time.perf_counter() - began_s, len(data), calls.latencies_s)

    def prepare(self, data: memoryview) -> None:
        try:
            with self._file.open("wb", buffering=0) as file:
                _write_all(file.fileno(), data, 0)
                os.fsync(file.fileno())
        except OSError as error:
            raise self._translated(error, "write") from error
        self._size_bytes = len(data)

    def read(self, setting: Setting) -> Timing:
        return self._read(setting.direct, setting.threads, pieces_of(self._size_bytes, setting.block_bytes))

    def random_reads(self, offsets: Sequence[int], threads: int, direct: bool | None) -> Timing:
        return self._read(direct, threads, [(offset, offset + SMALL_BYTES) for offset in offsets])

    def _read(self, direct: bool | None, threads: int, pieces: Sequence[tuple[int, int]]) -> Timing:
        if not direct and not self._warm:
            make_cold([self._file], whole_cache=False)
        try:
            fd = os.open(self._file, os.O_RDONLY | (os.O_DIRECT if direct else 0))
            try:
                return in_threads(threads, pieces, lambda start, stop, buffer: _read_all(fd, buffer, start))
            finally:
                os.close(fd)
        except OSError as error:
            raise self._translated(error, "read") from error

    def small_writes(self, count: int) -> Timing:
        data, latencies_s, place = bytes(SMALL_BYTES), [], self._folder / "device.small"
        try:
            for _ in range(count):
                began_s = time.perf_counter()
                with place.with_suffix(".tmp").open("xb", buffering=0) as file:
                    file.write(data)
                    os.fsync(file.fileno())
                place.with_suffix(".tmp").rename(place)
                _sync_folder(self._folder)
                latencies_s.append(time.perf_counter() - began_s)
        except OSError as error:
            raise self._translated(error, "write") from error
        finally:
            place.unlink(missing_ok=True)
            place.with_suffix(".tmp").unlink(missing_ok=True)
        return Timing(sum(latencies_s), count * SMALL_BYTES, tuple(latencies_s))

    def fsyncs(self, count: int) -> Timing:
        """The fsync alone, each after SMALL_BYTES were overwritten in place."""
        latencies_s, place = [], self._folder / "device.fsync"
        try:
            with place.open("wb", buffering=0) as file:
                for _ in range(count):
                    os.pwrite(file.fileno(), bytes(SMALL_BYTES), 0)
                    began_s = time.perf_counter()
                    os.fsync(file.fileno())
                    latencies_s.append(time.perf_counter() - began_s)
        except OSError as error:
            raise self._translated(error, "fsync") from error
        finally:
            place.unlink(missing_ok=True)
        return Timing(sum(latencies_s), count * SMALL_BYTES, tuple(latencies_s))

    def close(self) -> None:
        self._file.unlink(missing_ok=True)

    def _translated(self, error: OSError, operation: str) -> TierFull | TierUnavailable:
        leaf = TierFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else TierUnavailable
        return leaf(error.strerror or str(error), operation=f"bench: {operation}", subject=str(self._folder), tier=self._tier)


def takes_direct_io(folder: Path) -> bool:
    """Whether this file system takes O_DIRECT writes of a page."""
    place, page = folder / "direct.probe", aligned(SMALL_BYTES)
    try:
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
        try:
            return os.pwrite(fd, page, 0) == SMALL_BYTES
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise
    finally:
        place.unlink(missing_ok=True)


def _preallocate(fd: int, size_bytes: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], offset + written)


def _read_all(fd: int, buffer: memoryview, offset: int) -> None:
    filled = 0
    while filled < len(buffer):
        found = os.preadv(fd, [buffer[filled:]], offset + filled)
        if found == 0:
            raise OSError(errno.EIO, "the file ends too soon")
        filled += found


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
