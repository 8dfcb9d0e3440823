"""Writers that wait for one another share a commit: each gets what it would have got alone."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from ckptstore.catalog.engine import Database
from ckptstore.catalog.group_commit import MOST_AT_ONCE
from ckptstore.errors import CatalogUnavailable, InvalidInput
from tests.until import until

Work = Callable[[Connection], Any]


class Bed:
    """A database with one table, whose commits are counted."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.database = Database(f"sqlite:///{file}", patience_s=2.0)
        self.database.write("make", lambda tx: tx.execute(text("CREATE TABLE numbers (n INTEGER PRIMARY KEY)")))
        self.commits = 0
        event.listen(self.database._engine, "commit", self._count)
        self._executor = ThreadPoolExecutor(64)

    def _count(self, _: Connection) -> None:
        self.commits += 1

    def write(self, work: Work) -> Any:
        return self.database.write("test", work)

    def hold(self) -> tuple[Future[Any], threading.Event]:
        """A transaction that is under way until the event is set."""
        begun, go_on = threading.Event(), threading.Event()

        def work(_: Connection) -> None:
            begun.set()
            assert go_on.wait(60)

        held = self._executor.submit(self.write, work)
        assert begun.wait(60)
        return held, go_on

    def together(self, *works: Work) -> list[Future[Any]]:
        """These, each from a thread of its own, in this order, while one transaction is under way; their futures, ended."""
        group_commit = self.database.group_commit
        assert group_commit is not None
        first, go_on = self.hold()
        futures = []
        for number, work in enumerate(works, 1):
            futures.append(self._executor.submit(self.write, work))
            until("it waits", lambda number=number: group_commit.waiting == number)
        self.commits = 0
        go_on.set()
        for future in (first, *futures):
            future.exception(60)
        return futures

    def numbers(self) -> list[int]:
        """As another process would see them."""
        with closing(sqlite3.connect(self.file)) as connection:
            return [number for (number,) in connection.execute("SELECT n FROM numbers ORDER BY n")]


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path / "catalog.db")
    yield made
    made.database.close()


def insert(number: int) -> Work:
    def work(tx: Connection) -> int:
        tx.execute(text("INSERT INTO numbers VALUES (:n)"), {"n": number})
        return number

    return work


def test_what_waited_is_committed_once_and_each_gets_its_own_result(bed: Bed) -> None:
    futures = bed.together(*(insert(number) for number in range(10)))
    assert [future.result() for future in futures] == list(range(10)) == bed.numbers()
    assert bed.commits == 2  # the one that was under way, and all others


def test_each_sees_what_those_before_it_did(bed: Bed) -> None:
    count: Work = lambda tx: tx.execute(text("SELECT count(*) FROM numbers")).scalar_one()  # noqa: E731
    futures = bed.together(insert(1), count, insert(2), count)
    assert [futures[1].result(), futures[3].result()] == [1, 2]


def test_more_than_fit_are_done_in_turns(bed: Bed) -> None:
    futures = bed.together(*(insert(number) for number in range(MOST_AT_ONCE + 3)))
    assert [future.result() for future in futures] == bed.numbers()
    assert bed.commits == 3


def test_an_error_of_ones_own_takes_back_ones_own_and_nothing_else(bed: Bed) -> None:
    def refused(tx: Connection) -> None:
        insert(100)(tx)
        raise InvalidInput("not so", operation="test")

    before, wrong, after = bed.together(insert(1), refused, insert(2))
    assert (before.result(), after.result(), bed.numbers()) == (1, 2, [1, 2])
    with pytest.raises(InvalidInput, match="not so"):
        wrong.result()
    assert bed.commits == 2


def test_a_fault_of_the_database_finds_whose_it_is_and_the_others_are_done_all_the_same(bed: Bed) -> None:
    tries = 0

    def broken(tx: Connection) -> None:
        nonlocal tries
        tries += 1
        tx.execute(text("INSERT INTO nowhere VALUES (1)"))

    before, wrong, after = bed.together(insert(1), broken, insert(2))
    assert (before.result(), after.result(), bed.numbers()) == (1, 2, [1, 2])
    with pytest.raises(CatalogUnavailable, match="nowhere"):
        wrong.result()
    assert tries == 2  # with the others, and alone


def test_of_two_that_race_the_second_is_tried_again_and_sees_the_first(bed: Bed) -> None:
    def insert_or_find(tx: Connection) -> str:
        found = tx.execute(text("SELECT n FROM numbers WHERE n = 7")).first() if seen else None
        seen.append(1)
        if found is not None:
            return "found"
        insert(7)(tx)
        return "made"

    seen: list[int] = []
    futures = bed.together(insert(7), insert_or_find, insert(8))
    assert [future.result() for future in futures] == [7, "found", 8] and bed.numbers() == [7, 8]


def test_a_database_that_another_process_locks_is_told_to_all_who_wait_and_recovers(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(bed.file, isolation_level=None)) as other:
        bed.database._engine.dispose()
        monkeypatch.setattr("ckptstore.catalog.engine.BUSY_TIMEOUT_S", 0.1)
        other.execute("BEGIN IMMEDIATE")
        futures = [bed._executor.submit(bed.write, insert(number)) for number in range(5)]
        for future in futures:
            with pytest.raises(CatalogUnavailable, match="locked"):
                future.result(60)
        other.execute("ROLLBACK")
    assert bed.write(insert(9)) == 9 and bed.numbers() == [9]


def test_who_is_not_begun_in_time_is_told_so_and_does_nothing_later(bed: Bed) -> None:
    first, go_on = bed.hold()
    late = bed._executor.submit(bed.write, insert(1))
    with pytest.raises(CatalogUnavailable, match="has not come through"):
        late.result(60)
    go_on.set()
    first.result(60)
    assert bed.write(insert(2)) == 2 and bed.numbers() == [2]


def test_an_interrupt_in_one_writer_leaves_no_other_waiting(bed: Bed) -> None:
    def interrupted(_: Connection) -> None:
        raise KeyboardInterrupt

    futures = bed.together(insert(1), interrupted, insert(2))
    assert [type(future.exception(60)) for future in futures] == [KeyboardInterrupt] * 3
    assert bed.write(insert(3)) == 3 and bed.numbers() == [3]
