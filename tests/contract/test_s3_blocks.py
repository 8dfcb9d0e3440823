"""Ranges are fetched ahead, each block is given on when it is there, in any order, and nobody waits for what has failed."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptstore.errors import TierUnavailable
from ckptstore_tiers.checksums import BLOCK_BYTES, block_count, block_length
from ckptstore_tiers.s3_blocks import LENT_BLOCKS, S3Blocks
from ckptstore_tiers.s3_buffers import PartBuffers
from tests.contract.tier_contract import content

RANGE_BLOCKS = 2
SIZE_BYTES = 11 * BLOCK_BYTES + 17
DATA = content(SIZE_BYTES)


class Far:
    """A store in memory that counts what is read from it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.read: list[tuple[int, int]] = []
        self.before_block: Callable[[int], None] = lambda index: None

    def __call__(self, start: int, view: memoryview, arrived: Callable[[int], None]) -> None:
        self.read.append((start, len(view)))
        for offset in range(0, len(view), BLOCK_BYTES):
            self.before_block((start + offset) // BLOCK_BYTES)
            stop = min(offset + BLOCK_BYTES, len(view))
            view[offset:stop] = self.data[start + offset : start + stop]
            arrived(stop)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def blocks(far: Far, executor: ThreadPoolExecutor, *, ahead: int = 3, size_bytes: int = SIZE_BYTES) -> S3Blocks:
    return S3Blocks(size_bytes, far, executor, PartBuffers(), range_bytes=RANGE_BLOCKS * BLOCK_BYTES, ranges_ahead=ahead)


def scratch() -> memoryview:
    return memoryview(mmap.mmap(-1, BLOCK_BYTES))


def expected(index: int) -> bytes:
    return DATA[index * BLOCK_BYTES : index * BLOCK_BYTES + block_length(index, SIZE_BYTES)]


def test_in_order_every_range_is_read_once_and_no_block_is_copied(executor: ThreadPoolExecutor) -> None:
    far, mine = Far(DATA), scratch()
    with blocks(far, executor) as source:
        for index in range(block_count(SIZE_BYTES)):
            view = source.block(index, mine)
            assert view == expected(index)
            assert view.obj is not mine.obj
    range_bytes = RANGE_BLOCKS * BLOCK_BYTES
    starts = range(0, SIZE_BYTES, range_bytes)
    assert sorted(far.read) == [(start, min(range_bytes, SIZE_BYTES - start)) for start in starts]


@settings(max_examples=30, deadline=None)
@given(order=st.lists(st.integers(0, block_count(SIZE_BYTES) - 1), max_size=40), ahead=st.integers(1, 7))
def test_in_any_order_and_again_every_block_is_right(order: list[int], ahead: int) -> None:
    with ThreadPoolExecutor(4) as executor, blocks(Far(DATA), executor, ahead=ahead) as source:
        mine = [scratch(), scratch()]
        for turn, index in enumerate(order):
            assert source.block(index, mine[turn % 2]) == expected(index)


def test_a_put_that_gathers_more_blocks_than_may_be_lent_does_not_wait_for_itself(executor: ThreadPoolExecutor) -> None:
    with blocks(Far(DATA), executor, ahead=1) as source:
        places = [scratch() for _ in range(block_count(SIZE_BYTES))]
        gathered = [source.block(index, place) for index, place in enumerate(places)]
        assert len(gathered) > LENT_BLOCKS
        assert [bytes(view) for view in gathered] == [expected(index) for index in range(len(gathered))]


def test_a_block_is_given_on_while_the_rest_of_its_range_is_still_to_come(executor: ThreadPoolExecutor) -> None:
    far, rest = Far(DATA), threading.Event()
    far.before_block = lambda index: None if index % RANGE_BLOCKS == 0 else rest.wait(30) and None
    with blocks(far, executor) as source:
        assert source.block(0, scratch()) == expected(0)
        rest.set()
        assert source.block(1, scratch()) == expected(1)


def test_a_range_that_fails_fails_its_blocks_and_no_others(executor: ThreadPoolExecutor) -> None:
    def fail(index: int) -> None:
        if index == 3:
            raise TierUnavailable("gone", operation="read")

    far = Far(DATA)
    far.before_block = fail
    with blocks(far, executor) as source:
        mine = scratch()
        assert [bytes(source.block(index, mine)) for index in (0, 1, 2)] == [expected(index) for index in (0, 1, 2)]
        with pytest.raises(TierUnavailable, match="gone"):
            source.block(3, mine)
        assert source.block(4, mine) == expected(4)


def test_leaving_in_the_middle_ends_the_fetching_and_lets_nobody_write_afterwards(executor: ThreadPoolExecutor) -> None:
    far, begun, go_on = Far(DATA), threading.Event(), threading.Event()

    def hold(index: int) -> None:
        begun.set()
        assert go_on.wait(30)

    far.before_block = hold
    with blocks(far, executor, ahead=2):
        assert begun.wait(30)
        threading.Timer(0.05, go_on.set).start()
    assert len(far.read) <= 2
    assert executor.submit(lambda: "idle").result(timeout=30) == "idle"


def test_memory_is_used_again_and_not_more_than_the_ranges_ahead(executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = mmap.mmap
    buffers = PartBuffers()
    monkeypatch.setattr("ckptstore_tiers.s3_buffers.mmap.mmap", lambda *given: (made.append(given[1]), real(*given))[1])
    for _ in range(3):
        with S3Blocks(SIZE_BYTES, Far(DATA), executor, buffers, range_bytes=RANGE_BLOCKS * BLOCK_BYTES, ranges_ahead=2) as source:
            mine = bytearray(BLOCK_BYTES)
            for index in range(block_count(SIZE_BYTES)):
                assert source.block(index, memoryview(mine)) == expected(index)
    assert made == [RANGE_BLOCKS * BLOCK_BYTES] * 2
