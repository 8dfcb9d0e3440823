"""A file that is still being written is read block by block as it arrives, by this process and by others, and never beyond."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckptstore.arrivals import PIPE_BYTES, pack_blocks, unpack_blocks
from ckptstore.catalog.model import StoredFile
from ckptstore.errors import NotFound, TierUnavailable
from ckptstore_client.arriving import ArrivingFile
from ckptstore_server.arriving import Arrivals, Arriving
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests
from tests.contract.tier_contract import content

SIZE_BYTES = 5 * BLOCK_BYTES + 4096 + 17
DATA = content(SIZE_BYTES)


def stored_file(size_bytes: int) -> StoredFile:
    digests = BlockDigests(size_bytes, bytes(16 * -(-size_bytes // BLOCK_BYTES)))
    object_id = "0" * 26
    return StoredFile(object_id, "x", 0, f"objects/x~{object_id}", "node", size_bytes, digests.root, digests.blocks)


@dataclass
class Recall:
    """What a posix tier's put does to the object, step by step."""

    arriving: Arriving
    fd: int

    def write(self, index: int) -> None:
        os.pwrite(self.fd, DATA[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES], index * BLOCK_BYTES)
        self.arriving.stored(index)


@pytest.fixture
def recall(tmp_path: Path) -> Iterator[Recall]:
    arriving = Arriving(stored_file(SIZE_BYTES), "nvme", lambda: None)
    fd = os.open(tmp_path / "unfinished", os.O_RDWR | os.O_CREAT)
    arriving.begun(fd)
    yield Recall(arriving, fd)
    arriving.end()
    os.close(fd)


def client_file(arriving: Arriving) -> ArrivingFile:
    return ArrivingFile(arriving.descriptor(), arriving.follow(), "nvme", size_bytes=SIZE_BYTES)


def read(file: ArrivingFile, index: int) -> bytes:
    size_bytes = min(BLOCK_BYTES, SIZE_BYTES - index * BLOCK_BYTES)
    view = memoryview(bytearray(size_bytes))
    file.read(index * BLOCK_BYTES, [view], again=False)
    return bytes(view)


def expected(index: int) -> bytes:
    return DATA[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]


def test_readers_that_come_early_late_and_in_any_order_get_every_block(recall: Recall) -> None:
    early = client_file(recall.arriving)
    recall.write(2)
    late = client_file(recall.arriving)
    with ThreadPoolExecutor(12) as executor:
        waiting = [executor.submit(read, file, index) for file in (early, late) for index in (5, 3, 0, 2, 1, 4)]
        for index in (0, 5, 1, 4, 3):
            recall.write(index)
        assert [one.result(timeout=30) for one in waiting] == [expected(index) for index in (5, 3, 0, 2, 1, 4)] * 2
    late.close()
    early.close()


def test_a_block_that_is_not_there_is_waited_for(recall: Recall) -> None:
    file = client_file(recall.arriving)
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(read, file, 1)
        recall.write(0)
        assert not waiting.done()
        recall.write(1)
        assert waiting.result(timeout=30) == expected(1)
    file.close()


def test_what_came_before_the_end_can_be_read_after_it_and_the_rest_is_unavailable(recall: Recall) -> None:
    file = client_file(recall.arriving)
    with closing(recall.arriving.reader()) as reader:
        recall.write(0)
        recall.arriving.end()
        for unavailable in (lambda: read(file, 1), lambda: reader.read_into(BLOCK_BYTES, memoryview(bytearray(10)))):
            with pytest.raises(TierUnavailable):
                unavailable()
        view = memoryview(bytearray(BLOCK_BYTES))
        reader.read_into(0, view)
        assert (read(file, 0), bytes(view)) == (expected(0), expected(0))
    for ended in (recall.arriving.descriptor, recall.arriving.follow):
        with pytest.raises(NotFound):
            ended()
    file.close()


def test_a_file_that_is_written_anew_sends_the_readers_of_the_old_one_away(recall: Recall, tmp_path: Path) -> None:
    file = client_file(recall.arriving)
    recall.write(0)
    anew = os.open(tmp_path / "anew", os.O_RDWR | os.O_CREAT)
    recall.arriving.begun(anew)
    with pytest.raises(TierUnavailable):
        read(file, 1)
    again = Recall(recall.arriving, anew)
    other = client_file(recall.arriving)
    again.write(1)
    assert read(other, 1) == expected(1)
    for one in (file, other):
        one.close()
    os.close(anew)


def test_a_reader_that_hung_up_and_one_that_never_looks_hold_nobody_up(tmp_path: Path) -> None:
    size_bytes = (PIPE_BYTES // 16 + 10) * BLOCK_BYTES  # more blocks than a pipe has room for
    arriving = Arriving(stored_file(size_bytes), "nvme", lambda: None)
    with open(tmp_path / "unfinished", "wb") as file:
        arriving.begun(file.fileno())
        gone, idle = arriving.follow(), arriving.follow()
        os.close(gone)
        for index in range(size_bytes // BLOCK_BYTES):
            arriving.stored(index)
        told = 0
        while data := os.read(idle, PIPE_BYTES):  # what fitted, then the end
            told += sum(stop - first for first, stop in unpack_blocks(data))
        assert 0 < told < size_bytes // BLOCK_BYTES
        late = arriving.follow()
        assert list(unpack_blocks(os.read(late, 4096))) == [(0, size_bytes // BLOCK_BYTES)]
        arriving.end()
    for pipe in (idle, late):
        os.close(pipe)


def test_only_recalls_that_can_be_read_are_found(tmp_path: Path) -> None:
    arrivals, arriving = Arrivals(), Arriving(stored_file(SIZE_BYTES), "nvme", lambda: None)
    object_id = arriving.file.object_id
    with arrivals.announced(arriving), open(tmp_path / "unfinished", "wb") as file:
        assert arrivals.find(object_id) is None
        arriving.begun(file.fileno())
        assert arrivals.find(object_id) is arriving
    assert arrivals.find(object_id) is None


def test_its_beginning_is_told_from_the_thread_that_writes(tmp_path: Path) -> None:
    begun = threading.Event()
    arriving = Arriving(stored_file(SIZE_BYTES), "nvme", begun.set)
    with open(tmp_path / "unfinished", "wb") as file:
        arriving.begun(file.fileno())
    assert begun.is_set()
    arriving.end()


def test_messages_are_pairs_and_half_a_pair_is_none() -> None:
    data = pack_blocks(1, 2) + pack_blocks(7, 1 << 40)
    assert list(unpack_blocks(data + b"half")) == [(1, 2), (7, 1 << 40)]
