"""The window climbs while the endpoint turns slots into throughput, gives back what is worth nothing, and halves when the server asks."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest

from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.s3_window import ONE_REFUSAL_S, TransferWindow, WindowBounds

BOUNDS = WindowBounds(
    least=1, start=4, most=16, part_least=4 * BLOCK_BYTES, part_most=16 * BLOCK_BYTES, memory_bytes=32 * BLOCK_BYTES
)
MB = 10**6


class Endpoint:
    """Transfers of one window in virtual time: `speed(n)` is what n connections move together, in bytes a second."""

    def __init__(self, speed: Callable[[int], float], bounds: WindowBounds = BOUNDS) -> None:
        self.speed = speed
        self.now_s = 0.0
        self.window = TransferWindow("object", bounds, clock=lambda: self.now_s)

    def move(self, count: int, size_bytes: int = 4 * BLOCK_BYTES) -> None:
        """So many transfers, as many at once as the window allows; each takes as long as its share of the speed says."""
        running: list[tuple[float, int]] = []
        slots = {}
        for number in range(count):
            while len(running) >= self.window.figures.parallel:
                self._end_one(running, slots)
            slot = self.window.slot()
            transfer = slot.__enter__()
            slots[number] = slot
            transfer.moved_bytes = size_bytes
            parallel = min(self.window.figures.parallel, count)
            heapq.heappush(running, (self.now_s + size_bytes * parallel / self.speed(parallel), number))
        while running:
            self._end_one(running, slots)

    def _end_one(self, running, slots) -> None:  # type: ignore[no-untyped-def]
        self.now_s, number = heapq.heappop(running)
        slots.pop(number).__exit__(None, None, None)


def test_it_grows_to_what_the_endpoint_can_use_and_no_further() -> None:
    endpoint = Endpoint(lambda parallel: 80 * MB * min(parallel, 9))
    endpoint.move(3000)
    assert 8 <= endpoint.window.figures.parallel <= 10


def test_it_stays_within_its_bounds() -> None:
    endless = Endpoint(lambda parallel: 80 * MB * parallel)
    endless.move(3000)
    assert endless.window.figures.parallel == BOUNDS.most
    for _ in range(10):
        endless.now_s += ONE_REFUSAL_S
        endless.window.refused()
    assert endless.window.figures.parallel == BOUNDS.least


def test_slots_that_only_make_the_others_slower_are_given_back() -> None:
    endpoint = Endpoint(lambda parallel: 400 * MB)  # full with one connection
    endpoint.move(400)
    assert endpoint.window.figures.parallel <= BOUNDS.start + 1


def test_a_server_that_has_too_much_to_do_halves_it_once_for_all_that_were_under_way() -> None:
    endpoint = Endpoint(lambda parallel: 80 * MB * parallel)
    endpoint.move(3000)
    endpoint.now_s += ONE_REFUSAL_S
    for _ in range(16):
        endpoint.window.refused()
    assert endpoint.window.figures.parallel == BOUNDS.most // 2
    assert endpoint.window.figures.refusals == 16
    endpoint.move(3000)
    assert endpoint.window.figures.parallel == BOUNDS.most


def test_an_endpoint_that_becomes_much_slower_gets_fewer() -> None:
    endpoint = Endpoint(lambda parallel: 80 * MB * parallel)
    endpoint.move(1000)
    before = endpoint.window.figures.parallel
    endpoint.speed = lambda parallel: 10 * MB
    endpoint.move(100)
    assert endpoint.window.figures.parallel < before


def test_small_transfers_tell_nothing() -> None:
    endpoint = Endpoint(lambda parallel: 80 * MB * parallel)
    endpoint.move(1000, size_bytes=BLOCK_BYTES)
    assert endpoint.window.figures.parallel == BOUNDS.start


@pytest.mark.parametrize("mb_per_s", [1, 30, 50, 100, 1000])
def test_parts_take_about_half_a_second_within_their_bounds(mb_per_s: int) -> None:
    endpoint = Endpoint(lambda parallel: mb_per_s * MB * parallel)
    endpoint.move(100)
    part = endpoint.window.part_bytes(1 << 40, held=False)
    assert part % BLOCK_BYTES == 0
    assert BOUNDS.part_least <= part <= BOUNDS.part_most
    assert part in (BOUNDS.part_least, BOUNDS.part_most) or abs(part - mb_per_s * MB / 2) <= BLOCK_BYTES


def test_every_slot_gets_as_many_parts_as_any_other_and_they_fit_into_memory() -> None:
    endpoint = Endpoint(lambda parallel: 1000 * MB * parallel)
    endpoint.move(1000)
    parallel = endpoint.window.figures.parallel
    assert endpoint.window.part_bytes(8 * parallel * 4 * BLOCK_BYTES, held=False) == BOUNDS.part_most
    assert endpoint.window.part_bytes(parallel * BOUNDS.part_most, held=False) == BOUNDS.part_most
    assert endpoint.window.part_bytes(parallel * 20 * BLOCK_BYTES, held=False) == 10 * BLOCK_BYTES
    assert endpoint.window.part_bytes(parallel * 4 * BLOCK_BYTES, held=False) == BOUNDS.part_least
    assert endpoint.window.part_bytes(1 << 40, held=True) == max(BOUNDS.part_least, BOUNDS.memory_bytes // parallel)
