"""What a storage said is asked for once, is good for the refresh time, outlives an outage, and takes bounded memory."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from ckptstore.errors import NotFound, StaleVersion, TierUnavailable
from ckptstore_server.readers.origin import FileVersion
from ckptstore_server.readers.origins import answers as answers_module
from ckptstore_server.readers.origins.answers import Answers
from ckptstore_server.readers.origins.gate import Gate
from ckptstore_server.readers.origins.storage import Found, FoundPage
from tests.until import until


class Counting:
    """A storage of numbered files that counts what it is asked."""

    identity = "counting"

    def __init__(self) -> None:
        self.gate = Gate()
        self.asked: list[str] = []
        self.down = False
        self.version = "1"
        self.may_answer = threading.Event()
        self.may_answer.set()

    def look(self, name: str) -> Found:
        self._ask(name)
        if name == "none":
            raise NotFound("nothing is there", operation="stat", subject=name)
        return Found(name, size_bytes=1, upstream=self.version)

    def page(self, folder: str, after: str, limit: int) -> FoundPage:
        self._ask(f"{folder}/{after}")
        first = int(after or 0)
        return FoundPage(tuple(Found(f"f{number}", upstream=self.version) for number in range(first, first + limit)), str(first + limit))

    def read_into(self, file: FileVersion, offset_bytes: int, into: memoryview) -> None:
        if file.upstream != self.version:
            raise StaleVersion("it was changed")

    def where(self, name: str) -> str:
        return name

    def close(self) -> None: ...

    def _ask(self, question: str) -> None:
        self.asked.append(question)
        self.may_answer.wait(30)
        if self.down:
            raise TierUnavailable("down")


@pytest.fixture
def storage() -> Counting:
    return Counting()


async def look_at_all(answers: Answers, names: list[str]) -> list[Any]:
    return await asyncio.gather(*(answers.look(name) for name in names), return_exceptions=True)


def test_who_asks_at_once_for_the_same_waits_for_one_answer(storage: Counting) -> None:
    storage.may_answer.clear()
    answers = Answers(storage, refresh_s=0)

    async def story() -> list[Any]:
        waiting = asyncio.ensure_future(look_at_all(answers, ["a"] * 50 + ["none"] * 50))
        await asyncio.to_thread(until, "both are asked", lambda: len(storage.asked) == 2)
        storage.may_answer.set()
        return await waiting

    found = asyncio.run(story())
    assert sorted(storage.asked) == ["a", "none"]
    assert [type(one) for one in found] == [Found] * 50 + [NotFound] * 50


def test_one_who_gives_up_waiting_does_not_take_the_answer_from_the_others(storage: Counting) -> None:
    storage.may_answer.clear()
    answers = Answers(storage, refresh_s=0)

    async def story() -> Found:
        first, second = asyncio.ensure_future(answers.look("a")), asyncio.ensure_future(answers.look("a"))
        await asyncio.to_thread(until, "it is asked", lambda: storage.asked)
        first.cancel()
        storage.may_answer.set()
        return await second

    assert asyncio.run(story()).name == "a"
    assert storage.asked == ["a"]


def test_answers_are_good_for_the_refresh_time_also_that_nothing_is_there(storage: Counting) -> None:
    for refresh_s, times in ((3600.0, 1), (0.0, 3)):
        storage.asked.clear()
        answers = Answers(storage, refresh_s=refresh_s)
        for _ in range(3):
            asyncio.run(look_at_all(answers, ["a", "none"]))
        assert sorted(storage.asked) == ["a"] * times + ["none"] * times


def test_a_listing_answers_later_looks(storage: Counting) -> None:
    answers = Answers(storage, refresh_s=3600)
    asyncio.run(answers.page("", "", 100))
    found = asyncio.run(look_at_all(answers, [f"f{number}" for number in range(101)]))
    assert len(found) == 101
    assert storage.asked == ["/", "f100"]


def test_while_the_storage_is_down_what_it_said_stays_good(storage: Counting) -> None:
    answers = Answers(storage, refresh_s=0)
    asyncio.run(look_at_all(answers, ["a", "none"]))
    storage.down, storage.version = True, "2"
    known, missing, unknown = asyncio.run(look_at_all(answers, ["a", "none", "b"]))
    assert known.upstream == "1"
    assert isinstance(missing, NotFound)
    assert isinstance(unknown, TierUnavailable)
    storage.down = False
    assert [one.upstream for one in asyncio.run(look_at_all(answers, ["a", "b"]))] == ["2", "2"]


def test_a_stale_read_has_the_answer_forgotten(storage: Counting) -> None:
    answers = Answers(storage, refresh_s=3600)
    found = asyncio.run(answers.look("a"))
    file = FileVersion("v", "/a", 1, 0.0, "", name="a", upstream=found.upstream)
    answers.read_into(file, 0, memoryview(bytearray(1)))
    storage.version = "2"
    assert asyncio.run(answers.look("a")).upstream == "1"
    with pytest.raises(StaleVersion):
        answers.read_into(file, 0, memoryview(bytearray(1)))
    assert asyncio.run(answers.look("a")).upstream == "2"


def test_what_is_remembered_is_bounded_by_entries(storage: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "REMEMBERED", 1000)
    answers = Answers(storage, refresh_s=3600)

    async def story() -> None:
        after = ""
        for _ in range(50):
            after = (await answers.page("", after, 300)).after or ""

    asyncio.run(story())
    entries = sum(answer.weight for answer in answers._known.values())
    assert entries == answers._weight <= 1000
    storage.asked.clear()
    asyncio.run(answers.look("f14999"))
    assert storage.asked == []
    asyncio.run(answers.look("f0"))
    assert storage.asked == ["f0"]
