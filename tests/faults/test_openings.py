"""A save's attempt is joined while its client copies: what came of that is told once, to its own client, and nothing is held up by it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ckptstore.catalog import Catalog
from ckptstore.catalog.model import AttemptState, AttemptView
from ckptstore.config import read_settings
from ckptstore.errors import AlreadyExists, CatalogUnavailable, InvalidInput, NotFound, WaitTimeout
from ckptstore.wire import SESSION_HEADER, AttemptOpened, OpenAttempt, SegmentGrant
from ckptstore_bench.ports import free_port
from ckptstore_client import connect
from ckptstore_client.api import Api
from ckptstore_client.descriptors import DescriptorConnection
from ckptstore_server import openings
from tests.faults.fault_store import FaultStore, assert_state, posix_tier, published, state_of
from tests.faults.raw_client import RawClient
from tests.faults.slow_catalog import SlowCatalog
from tests.until import until

SLOTS = 2
PORT, TOKEN = free_port(), "a-token-of-the-tests"


@dataclass
class CountedOpenings:
    """Rigging for a daemon whose catalog is slow to join, and which adds a byte to a file `openings` at each question to open."""

    home: Path

    def __call__(self, stack: ExitStack) -> None:
        from ckptstore_server.attempts import AttemptService

        SlowCatalog(self.home, "join")(stack)
        opens = AttemptService.open

        async def counted(service: AttemptService, request: OpenAttempt, *, session: str) -> AttemptOpened:
            opening = asyncio.ensure_future(opens(service, request, session=session))
            await asyncio.sleep(0)  # it has begun
            with (self.home / "openings").open("ab") as file:
                file.write(b".")
            return await opening

        AttemptService.open = counted  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultStore]:
    folder = tmp_path_factory.mktemp("openings")
    home = folder / "home"
    settings = {"memory": {"limit": "64MiB", "slots": SLOTS}, "listen": f"127.0.0.1:{PORT}", "token": TOKEN}
    with FaultStore(home, [posix_tier("nvme", folder / "nvme")], settings=settings, rigging=CountedOpenings(home)) as place:
        place.start()
        with place.connect() as store:
            store.save("/run/there", state_of(0)).wait("nvme", timeout_s=60)
        yield place


@pytest.fixture
def client(place: FaultStore) -> Iterator[DescriptorConnection]:
    with DescriptorConnection(read_settings(place.home / "config.toml", home=place.home).fd_socket) as client:
        yield client


def wanted(path: str, **more: Any) -> OpenAttempt:
    return OpenAttempt(path=path, token="a token of this test", ordinal=0, rank=0, world_size=1, size_bytes=4096, **more)


def aborted(place: FaultStore) -> list[AttemptView]:
    with closing(Catalog.open(f"sqlite:///{place.home / 'catalog.sqlite3'}", node="a test")) as catalog:
        return catalog.attempts([AttemptState.ABORTED])


def test_what_came_of_an_opening_is_told_once_and_to_its_own_client(place: FaultStore, client: DescriptorConnection) -> None:
    grant = client.acquire(4096, wanted("/run/told-once"))
    with DescriptorConnection(read_settings(place.home / "config.toml", home=place.home).fd_socket) as other, pytest.raises(NotFound):
        other.opened(grant)
    with pytest.raises(NotFound):
        client.opened(grant.model_copy(update={"generation": grant.generation + 1}))
    assert client.opened(grant).segment == grant
    with pytest.raises(NotFound, match="no attempt was begun"):
        client.opened(grant)


def test_an_opening_that_is_refused_says_why_and_the_slot_can_be_given_back(client: DescriptorConnection) -> None:
    for _ in range(2 * SLOTS):
        grant = client.acquire(4096, wanted("/run/there"))
        with pytest.raises(AlreadyExists):
            client.opened(grant)
        client.release(grant)


def test_an_opening_that_makes_no_sense_takes_no_slot(client: DescriptorConnection) -> None:
    for _ in range(2 * SLOTS):
        with pytest.raises(InvalidInput):
            client.acquire(4096, wanted("/run/senseless").model_copy(update={"world_size": 0}))
    for number in range(SLOTS):
        assert client.opened(client.acquire(4096, wanted(f"/run/sensible-{number}"))).segment is not None


def test_an_attempt_whose_client_goes_without_asking_is_aborted(place: FaultStore) -> None:
    with place.connect() as store:
        slow = place.home / "slow"
        slow.touch()
        with DescriptorConnection(read_settings(place.home / "config.toml", home=place.home).fd_socket) as gone:
            gone.acquire(4096, wanted("/run/gone"))
            with pytest.raises(WaitTimeout):
                gone.opened(gone.acquire(4096, wanted("/run/gone-as-well")))
        until("the client's session has ended", lambda: store.status().sessions == 1)
        slow.unlink()
        until("nobody is joined any more", lambda: not store.status().attempts)
        for number in range(2 * SLOTS):
            store.save(f"/run/after-gone-{number}", state_of(number)).wait("nvme", timeout_s=60)


@pytest.mark.parametrize("opened", [True, False], ids=["before", "after"])
def test_an_attempt_whose_client_gave_its_slot_back_unasked_is_aborted(
    place: FaultStore, client: DescriptorConnection, opened: bool
) -> None:
    """What is joined before or after that: the client did not wait for the answer, since a locked catalog had it give up, say."""
    slow, asked = place.home / "slow", place.home / "asked"
    path = f"/run/unasked-{opened}"
    asked.unlink(missing_ok=True)
    with place.connect() as store:
        if not opened:
            slow.touch()
        grant = client.acquire(4096, wanted(path))
        if opened:
            until("it is joined", lambda: [attempt.path for attempt in store.status().attempts] == [path])
            client.release(grant)
        else:
            until("it is about to be joined", asked.exists)
            client.release(grant)
            slow.unlink()
        until("it was aborted", lambda: [view.path for view in aborted(place) if view.path == path])
        assert not store.status().attempts
        store.save(path, state_of(7)).wait("nvme", timeout_s=60)


def test_an_attempt_that_is_refused_once_it_was_joined_is_aborted(place: FaultStore, client: DescriptorConnection) -> None:
    grant = client.acquire(4096)
    too_much = wanted("/run/too-much").model_copy(update={"size_bytes": grant.capacity_bytes + 1, "segment": grant})
    with RawClient(place.daemon) as raw:
        assert raw.http.post("/v1/attempts", json=too_much.model_dump(mode="json")).status_code >= 400
        until("it was aborted", lambda: [view.path for view in aborted(place) if view.path == "/run/too-much"])
    client.release(grant)


def test_an_abort_that_a_locked_catalog_refuses_is_done_when_it_can_be(tmp_path: Path) -> None:
    home = tmp_path / "home"
    rigging = SlowCatalog(home, "abort", refuses=True)
    with FaultStore(home, [posix_tier("nvme", tmp_path / "nvme")], rigging=rigging) as place:
        place.start()
        with RawClient(place.daemon) as client, place.connect() as store:
            opened = client.opened("/run/a")
            (home / "slow").touch()
            assert client.abort(opened, "not wanted").json()["error"] == "catalog_unavailable"
            assert [attempt.path for attempt in store.status().attempts] == ["/run/a"]
            (home / "slow").unlink()
            until("it is aborted", lambda: not store.status().attempts)
            assert [view.reason for view in aborted(place)] == ["not wanted"]


def test_an_attempt_that_is_opened_twice_at_once_is_joined_once(place: FaultStore, client: DescriptorConnection) -> None:
    """The later of two would find the slot handed over, and end the attempt as one that failed."""
    slow, asked, counted = place.home / "slow", place.home / "asked", place.home / "openings"
    asked.unlink(missing_ok=True)
    counted.unlink(missing_ok=True)
    request = wanted("/run/twice")
    slow.touch()
    try:
        grant = client.acquire(4096, request)
        with pytest.raises(WaitTimeout):
            client.opened(grant)
        with place.daemon.http() as http, ThreadPoolExecutor(1) as executor:
            http.headers[SESSION_HEADER] = client.session
            again = executor.submit(http.post, "/v1/attempts", json=request.model_copy(update={"segment": grant}).model_dump())
            until("both are under way", lambda: counted.stat().st_size == 2)
            slow.unlink()
            answer = again.result(timeout=60)
    finally:
        slow.unlink(missing_ok=True)
    assert (answer.status_code, AttemptOpened.model_validate_json(answer.content)) == (200, client.opened(grant))
    assert asked.stat().st_size == 1


def test_an_answer_that_comes_as_patience_ends_is_there_for_the_next_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was lost once: who asked was told to ask again, and then that nothing had been begun."""
    monkeypatch.setattr(openings, "PATIENCE_S", 0.01)
    told = AttemptOpened(attempt_id="1" * 32)

    class Attempts:
        async def open(self, request: OpenAttempt, *, session: str) -> AttemptOpened:
            await asyncio.sleep(openings.PATIENCE_S)
            return told

    async def story() -> int:
        asked_again = 0
        for generation in range(50):
            begun = openings.Openings(Attempts())  # type: ignore[arg-type]
            begun.begin(wanted("/run/a"), SegmentGrant(segment_id="s", generation=generation, capacity_bytes=1), "session")
            while True:
                try:
                    assert await begun.answer("s", generation, "session") == told
                    break
                except WaitTimeout:
                    asked_again += 1
            with pytest.raises(NotFound):
                await begun.answer("s", generation, "session")
        return asked_again

    assert asyncio.run(story()) > 0


@pytest.mark.parametrize("way", ["socket", "request", "tcp"])
@pytest.mark.parametrize("on_busy", ["skip", "fail"])
def test_a_save_that_does_not_wait_is_not_held_up_by_a_catalog_that_hangs(place: FaultStore, on_busy: str, way: str) -> None:
    """Nor does it leave anything when the catalog goes on. Metadata that is long makes a request of its own."""
    slow, path = place.home / "slow", f"/run/hanging-{on_busy}-{way}"
    metadata = {"log": "x" * (1 << 20)} if way == "request" else None
    with connect(f"http://127.0.0.1:{PORT}", token=TOKEN) if way == "tcp" else place.connect() as store:
        slow.touch()
        try:
            if on_busy == "skip":
                assert store.save(path, state_of(1), on_busy="skip", metadata=metadata).skipped
            else:
                with pytest.raises(CatalogUnavailable, match="has not opened the attempt"):
                    store.save(path, state_of(1), on_busy="fail", metadata=metadata)
        finally:
            slow.unlink()
        until("it was aborted", lambda: [view.path for view in aborted(place) if view.path == path])
        assert not store.status().attempts
        store.save(path, state_of(7), on_busy="fail").wait("nvme", timeout_s=60)


def test_a_guarded_save_is_not_held_up_by_an_earlier_one_that_the_catalog_does_not_open(place: FaultStore) -> None:
    import torch

    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters())
    slow = place.home / "slow"
    with place.connect() as store:
        slow.touch()
        try:
            first = store.save("/run/held-up", model.state_dict(), guard=optimizer)
            second = store.save("/run/not-held-up", model.state_dict(), guard=optimizer)  # returns while nothing can be opened
            assert not published(store, "/run/held-up")
        finally:
            slow.unlink()
        for pending in (first, second):
            pending.wait("nvme", timeout_s=60)


def test_metadata_that_no_line_of_the_socket_holds_is_saved_all_the_same(place: FaultStore) -> None:
    with place.connect() as store:
        store.save("/run/wordy", state_of(4), metadata={"log": "x" * (1 << 20)}).wait("nvme", timeout_s=60)
        assert len(store.stat("/run/wordy").metadata["log"]) == 1 << 20
        assert_state(store.load("/run/wordy"), 4)


def test_a_save_opens_and_hands_over_without_a_single_request(place: FaultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with place.connect() as store:
        store.save("/run/first", state_of(5)).wait("nvme", timeout_s=60)

        def refused(*_: Any, **__: Any) -> Any:
            raise AssertionError("a request by HTTP")

        with monkeypatch.context() as patched:
            patched.setattr(Api, "call", refused)
            pending = store.save("/run/second", state_of(6))
        pending.wait("nvme", timeout_s=60)
        assert_state(store.load("/run/second"), 6)
