"""Sources give exactly the bytes they stand for, at the pace they are told."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ckptstore.errors import ChecksumMismatch, ConfigInvalid, InvalidInput
from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.paced import Pace, PacedSource
from ckptstore_tiers.private_copy import PrivateCopy
from ckptstore_tiers.scratch import ScratchPool
from ckptstore_tiers.sources import FileSource, MemorySource, is_aligned
from tests.contract.tier_contract import content


def test_scratch_is_aligned_and_reused() -> None:
    pool = ScratchPool(keep=1)
    with pool.borrow() as first:
        assert len(first) == BLOCK_BYTES
        assert is_aligned(first)
        first[:4] = b"mark"
    with pool.borrow() as again, pool.borrow() as other:
        assert again[:4] == b"mark"
        assert other[:4] != b"mark"


@pytest.mark.parametrize("size_bytes", [0, 1, 4096, BLOCK_BYTES, 2 * BLOCK_BYTES + 4095])
def test_a_file_is_read_block_by_block(tmp_path: Path, size_bytes: int) -> None:
    data = content(size_bytes)
    (tmp_path / "file").write_bytes(data)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    source = FileSource(fd, size_bytes)
    with ScratchPool().borrow() as scratch:
        found = b"".join(bytes(source.block(index, scratch)) for index in range(-(-size_bytes // BLOCK_BYTES)))
    source.close()
    os.close(fd)
    assert found == data


def test_a_file_shorter_than_promised_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"short")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    with ScratchPool().borrow() as scratch, pytest.raises(ChecksumMismatch, match="ends at byte 5 of 6"):
        FileSource(fd, 6).block(0, scratch)
    os.close(fd)


def test_there_is_no_block_beyond_the_end() -> None:
    with ScratchPool().borrow() as scratch, pytest.raises(InvalidInput):
        MemorySource(b"x").block(1, scratch)


def test_a_private_copy_does_not_follow_its_source() -> None:
    data = bytearray(b"before")
    with ScratchPool().borrow() as scratch:
        copy = PrivateCopy(MemorySource(data, stable=False)).block(0, scratch)
        data[:] = b"after!"
        assert bytes(copy) == b"before"


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._lock = threading.Lock()

    def read(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        with self._lock:
            self.now_s += duration_s


def test_blocks_pass_at_the_pace_they_share() -> None:
    clock = Clock()
    pace = Pace(BLOCK_BYTES, burst_bytes=BLOCK_BYTES, clock=clock.read, sleep=clock.sleep)
    first, second = (PacedSource(MemorySource(bytes(5 * BLOCK_BYTES)), pace) for _ in range(2))
    with ScratchPool().borrow() as scratch:
        for index in range(5):
            first.block(index, scratch)
            second.block(index, scratch)
    assert clock.now_s == pytest.approx(100.0 + 10 - 1)  # ten blocks, one of which was the burst


def test_a_long_pause_earns_one_burst_and_no_more() -> None:
    clock = Clock()
    pace = Pace(1000, burst_bytes=1000, clock=clock.read, sleep=clock.sleep)
    clock.now_s += 3600
    for _ in range(5):
        pace.take(1000)
    assert clock.now_s == pytest.approx(3700.0 + 4)


def test_a_pace_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigInvalid):
        Pace(0)
