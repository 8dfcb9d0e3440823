"""Which file goes first, and what is read ahead: the two decisions of the cache that need no disk."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from ckptstore_bench.cache.policies import LRU, OURS, policy, replay
from ckptstore_bench.cache.traces import TRACES
from ckptstore_client.cli.main import run
from ckptstore_server.readers.cache.policy import S3Fifo
from ckptstore_server.readers.cache.read_ahead import ReadAhead
from ckptstore_tiers.checksums import BLOCK_BYTES
from tests.browser import check_drawn

# --- what goes ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.2])
@pytest.mark.parametrize("kind", TRACES)
@pytest.mark.parametrize("seed", range(2))
def test_more_is_found_than_by_lru_on_skewed_reads_and_on_scans(kind: str, share: float, seed: int) -> None:
    trace = TRACES[kind](1500, 20_000, seed)
    limit_bytes = int(share * sum(dict(TRACES["zipf"](1500, 20_000, seed)).values()))
    ours, lru = (replay(trace, policy(name, limit_bytes)) for name in (OURS, LRU))
    assert ours.of_reads > lru.of_reads
    assert ours.of_bytes > lru.of_bytes


def test_files_read_once_leave_before_a_file_that_was_read_again() -> None:
    held: S3Fifo[str] = S3Fifo()
    held.admit("again", 10)
    held.use("again")
    for number in range(50):
        held.admit(f"once {number}", 10)
        if held.held_bytes > 100:
            assert held.evict() != "again"


def test_what_returns_soon_after_it_left_is_taken_for_used() -> None:
    held: S3Fifo[str] = S3Fifo()
    for name in ("main", "a", "b", "c"):
        held.admit(name, 10, proven=name == "main")
    assert held.evict() == "a"
    held.admit("a", 10)
    assert [held.evict(), held.evict()] == ["b", "c"]


def test_nothing_goes_that_may_not() -> None:
    held: S3Fifo[int] = S3Fifo()
    for number in range(6):
        held.admit(number, 10, proven=number % 2 == 0)
        held.use(number)
    assert {held.evict(lambda key: key != 3) for _ in range(5)} == {0, 1, 2, 4, 5}
    assert held.evict(lambda key: key != 3) is None
    assert 3 in held


def test_the_bytes_held_are_those_of_what_is_held() -> None:
    generator, sizes = random.Random(1), dict[int, int]()
    held: S3Fifo[int] = S3Fifo()
    for _ in range(3000):
        key, size_bytes = generator.randrange(60), generator.randrange(1, 1000)
        if key not in sizes:
            held.admit(key, size_bytes)
        else:
            held.use(key)
            held.resize(key, size_bytes)
        sizes[key] = size_bytes
        if generator.random() < 0.1:
            held.forget(key)
            del sizes[key]
        while held.held_bytes > 15_000:
            victim = held.evict()
            assert victim is not None
            del sizes[victim]
        assert held.held_bytes == sum(sizes.values())
        assert all(key in held for key in sizes)


# --- what is read ahead ---------------------------------------------------------------------------------------------------------------


def missing(total: int, there: Iterable[int] = ()) -> Callable[[int], Iterable[int]]:
    known = set(there)
    return lambda first: (block for block in range(first, total) if block not in known)


def read(ahead: ReadAhead, block: int, total: int = 100) -> list[int]:
    return ahead.after(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES, missing(total))


def test_a_run_is_read_ahead_with_a_window_that_doubles_up_to_its_limit() -> None:
    ahead = ReadAhead(8)
    assert [len(read(ahead, block)) for block in range(6)] == [0, 2, 4, 8, 8, 8]
    assert read(ahead, 6) == list(range(7, 15))
    assert read(ahead, 98) == []


def test_small_reads_in_order_are_a_run_and_the_window_grows_by_blocks_not_by_reads() -> None:
    ahead, windows = ReadAhead(16), []
    step = BLOCK_BYTES // 4
    for number in range(12):
        windows.append(len(ahead.after(number * step, (number + 1) * step, missing(100))))
    assert windows[0] == 0  # somebody may want only the beginning
    assert windows[1] == windows[2] == 1
    assert windows[-1] == 8  # three blocks further: 2, 4, 8


def test_reads_here_and_there_read_nothing_ahead() -> None:
    ahead = ReadAhead(16)
    for block in (50, 7, 90, 30, 70, 11):
        assert ahead.after(block * BLOCK_BYTES + 99, block * BLOCK_BYTES + 4195, missing(100)) == []


def test_two_readers_of_one_file_have_a_run_each() -> None:
    ahead = ReadAhead(16)
    for step in range(4):
        first, second = read(ahead, step), read(ahead, 50 + step)
    assert first[0] == 4
    assert (second[0], len(second)) == (54, 4)


def test_what_is_there_is_not_asked_for_again() -> None:
    ahead = ReadAhead(4)
    for block in range(3):
        read(ahead, block)
    assert ahead.after(3 * BLOCK_BYTES, 4 * BLOCK_BYTES, missing(100, there=[4, 6])) == [5, 7]


def test_a_header_that_a_loader_reads_brings_one_window_and_its_tensors_the_rest_of_the_file() -> None:
    ahead, there = ReadAhead(4, eager=True), set[int]()
    there |= {0, *ahead.after(0, 1000, missing(12, there))}
    assert there == {0, 1, 2, 3, 4}
    for block in (9, 2, 10):  # the order of the names, not of the file
        there |= {block, *ahead.after(block * BLOCK_BYTES, block * BLOCK_BYTES + 10, missing(12, there | {block}))}
    assert there == set(range(12))


# --- the bench ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_the_bench_shows_a_table_and_writes_json_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"--json": tmp_path / "cache.json", "--report": tmp_path / "cache.html"}
    options = [str(part) for pair in places.items() for part in pair]
    assert run(["bench", "cache", "--files", "200", "--reads", "3000", "--rounds", "2", *options]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("s3-fifo", "lru", "fifo", "zipf", "scan"))
    found = json.loads(places["--json"].read_text())
    assert {figure["bound"] for figure in found["figures"]} == {1.0}
    assert len(found["figures"]) == 16
    check_drawn(found, places["--report"])
