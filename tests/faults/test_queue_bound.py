"""What may wait to be drained has a bound: whoever saves or puts is slowed down by it, or told, as was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ckptstore.errors import Busy, NotFound
from ckptstore_client import Store
from ckptstore_client.api import Api
from tests.faults.fault_store import FaultStore, posix_tier, published, state_of
from tests.until import until

LIMIT_BYTES = 256 << 10
STATE_BYTES = 1 << 20


@dataclass
class HeldDrains:
    """Rigging for a daemon whose drains into "pfs" wait while a file `hold` is in its home."""

    home: Path

    def __call__(self, stack: ExitStack) -> None:
        from ckptstore.catalog.model import Drain
        from ckptstore_server.drain import Drainer
        from ckptstore_server.tier_handle import TierHandle

        moves = Drainer._move

        def held(drainer: Drainer, handle: TierHandle, drain: Drain) -> None:
            if handle.name == "pfs":
                until("drains may go on", lambda: not (self.home / "hold").exists())
            moves(drainer, handle, drain)

        Drainer._move = held  # type: ignore[method-assign]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[FaultStore]:
    home, tiers = tmp_path / "home", [posix_tier("nvme", tmp_path / "nvme"), posix_tier("pfs", tmp_path / "pfs")]
    with FaultStore(home, tiers, settings={"queue_limit": LIMIT_BYTES}, rigging=HeldDrains(home)) as place:
        (home / "hold").touch()
        yield place.start()


def fill_the_queue(store: Store) -> None:
    store.save("/run/large", state_of(1, size_bytes=STATE_BYTES)).wait("nvme", timeout_s=60)

    def is_refused() -> bool:
        try:
            store.save("/run/probe", state_of(2, size_bytes=64), replace=True, on_busy="fail").wait("nvme", timeout_s=60)
        except Busy as error:
            return "wait to be drained" in error.why and "queue_limit" in str(error.hint)
        return False

    until("the daemon has noticed", is_refused)


def test_a_save_that_does_not_wait_is_skipped_or_refused_while_too_much_waits_to_be_drained(place: FaultStore) -> None:
    store = place.connect()
    fill_the_queue(store)
    pending = store.save("/run/skipped", state_of(3), on_busy="skip")
    assert pending.skipped
    assert not published(store, "/run/skipped")
    (place.home / "hold").unlink()
    until("a save is let in", lambda: not store.save("/run/later", state_of(4), replace=True, on_busy="skip").skipped)


def save(store: Store, folder: Path) -> None:
    store.save("/run/slow", state_of(5)).wait("nvme", timeout_s=60)


def put_a_file(store: Store, folder: Path) -> None:
    store.put(folder / "files/a", "/run/slow")


def put_a_folder(store: Store, folder: Path) -> None:
    store.put(folder / "files", "/run/slow")


@pytest.mark.parametrize("act", [save, put_a_file, put_a_folder])
def test_who_waits_is_let_in_once_less_waits_than_the_bound(
    place: FaultStore, tmp_path: Path, act: Callable[[Store, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = place.connect(), place.connect()
    fill_the_queue(store)
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a").write_bytes(b"a")
    told: list[Busy] = []
    calls = Api.call

    def call(api: Api, *arguments: Any, **options: Any) -> Any:
        try:
            return calls(api, *arguments, **options)
        except Busy as error:
            told.append(error)
            raise

    monkeypatch.setattr(Api, "call", call)
    with ThreadPoolExecutor(1) as executor:
        acting = executor.submit(act, other, tmp_path)
        until("it was told to wait, and asked again", lambda: len(told) > 1 or acting.done())
        assert not acting.done(), "it was let in"
        assert not published(store, "/run/slow")
        (place.home / "hold").unlink()
        acting.result(timeout=60)
    assert published(store, "/run/slow")


def test_a_put_that_gives_up_while_it_waits_leaves_nothing(place: FaultStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptstore_client.putting.BUSY_TIMEOUT_S", 0.0)
    store = place.connect()
    fill_the_queue(store)
    (tmp_path / "file").write_bytes(b"small")
    with pytest.raises(Busy, match="wait to be drained"):
        store.put(tmp_path / "file", "/run/given-up")
    assert "/run/given-up" not in [attempt.path for attempt in store.status().attempts]
    with pytest.raises(NotFound):
        store.stat("/run/given-up")
