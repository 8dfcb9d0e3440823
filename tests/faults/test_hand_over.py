"""When a save has returned, the bytes are the daemon's: whatever the catalog does meanwhile, and whatever becomes of the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from ckptstore.errors import AttemptAborted, WaitTimeout
from ckptstore.wire import AttemptOpened
from ckptstore_client.local import LocalTransport
from tests.faults.fault_store import FaultStore, assert_state, posix_tier, published, state_of
from tests.faults.raw_client import RawClient
from tests.faults.slow_catalog import SlowCatalog
from tests.until import until


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultStore]:
    folder = tmp_path_factory.mktemp("hand-over")
    home = folder / "home"
    settings = {"memory": {"limit": "64MiB"}}
    with FaultStore(home, [posix_tier("nvme", folder / "nvme")], settings=settings, rigging=SlowCatalog(home, "snapshot_taken")) as place:
        place.start()
        yield place


@contextmanager
def before_hand_over(monkeypatch: pytest.MonkeyPatch, act: Any) -> Iterator[None]:
    """The next save does this when it has been opened, and before it hands over."""
    hand_over = LocalTransport.hand_over

    def acted(self: LocalTransport, opened: AttemptOpened, *args: Any) -> None:
        act(opened)
        hand_over(self, opened, *args)

    with monkeypatch.context() as patched:
        patched.setattr(LocalTransport, "hand_over", acted)
        yield


def test_a_trainer_that_is_gone_when_its_save_has_returned_has_saved_whatever_the_catalog_is_slow_to_note(place: FaultStore) -> None:
    slow = place.home / "slow"
    with place.connect() as observer:
        observer.save("/run/before", state_of(1)).wait("nvme", timeout_s=60)
        slow.touch()
        try:
            with place.connect() as trainer:
                pending = trainer.save("/run/noted-late", state_of(2))
                with pytest.raises(WaitTimeout):
                    pending.wait("snapshot", timeout_s=0.3)
            until("the catalog is being told", (place.home / "asked").exists)
            until("the trainer's session has ended", lambda: observer.status().sessions == 1)
        finally:
            slow.unlink()
        until("the snapshot is published", lambda: published(observer, "/run/noted-late"))
        assert_state(observer.load("/run/noted-late"), 2)


def test_an_attempt_that_was_aborted_before_is_told_by_the_wait_and_gives_its_slot_back(
    place: FaultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with place.connect() as store, RawClient(place.daemon) as other:

        def abort(opened: AttemptOpened) -> None:
            assert other.abort({"attempt_id": opened.attempt_id}, "somebody said so").status_code == 200

        with before_hand_over(monkeypatch, abort):
            pending = store.save("/run/aborted", state_of(3))
        with pytest.raises(AttemptAborted, match="somebody said so"):
            pending.wait("snapshot", timeout_s=60)
        assert not published(store, "/run/aborted")
        for number in range(4):  # more than there are slots
            store.save(f"/run/after-{number}", state_of(number)).wait("nvme", timeout_s=60)


def test_bytes_that_are_no_file_are_taken_first_and_end_their_attempt_then(place: FaultStore) -> None:
    """Whichever of the two is known first: the hand-over is answered alike, and what became of it is told to whoever asks for that."""
    slow, asked = place.home / "slow", place.home / "asked"
    asked.unlink(missing_ok=True)
    with place.connect() as observer, RawClient(place.daemon) as client, ThreadPoolExecutor(1) as executor:
        opened, _ = client.stage("/run/no-file", b"\xff" * 64)
        slow.touch()
        try:
            answer = executor.submit(client.hand_over, opened, 64)
            until("the catalog is being told", asked.exists)
            until("it was found to be no file", lambda: any(line.where == "save, rank 0" for line in observer.status().errors))
            assert observer.status().attempts
        finally:
            slow.unlink()
        assert answer.result(timeout=60).status_code == 200
        assert client.outcome(opened)["state"] == "aborted"
