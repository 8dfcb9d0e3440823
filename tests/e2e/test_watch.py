"""Who watches a folder hears of what is published there, and of each tier that comes to hold it, once and in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest

from ckptstore.errors import DaemonUnavailable, InvalidInput
from ckptstore.watch_messages import WatchEvent
from ckptstore_client import Store, connect
from tests.daemon_process import DaemonProcess, write_config
from tests.e2e.shell import Shell
from tests.until import until


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    tiers = [
        {"name": "nvme", "kind": "posix", "path": tmp_path / "nvme"},
        {"name": "pfs", "kind": "posix", "path": tmp_path / "pfs", "shared": True},
    ]
    write_config(tmp_path / "home", tiers=tiers, grace_s=0)
    with DaemonProcess(tmp_path / "home") as process:
        yield process


class Watcher:
    """Listens in a thread of its own."""

    def __init__(self, home: Path, path: str, since: int) -> None:
        self.heard: list[WatchEvent] = []
        self.store = connect(home=home, start=False)
        self._events = self.store.watch(path, since=since)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with suppress(DaemonUnavailable):  # the end
            for event in self._events:
                self.heard.append(event)

    def ended(self) -> bool:
        self._thread.join(30)
        return not self._thread.is_alive()

    def told(self) -> list[tuple[str, str | None]]:
        """Path and tier, None for that it was published; what a tier held by then is told with that."""
        return [(event.path, tier) for event in self.heard for tier in _news(event)]


def _news(event: WatchEvent) -> list[str | None]:
    return [event.tier] if event.event == "durable" else [None, *event.durability]


@pytest.fixture
def watching(daemon: DaemonProcess) -> Iterator[Callable[[str], Watcher]]:
    """Begins to watch a path from the store's first publication on."""
    watchers: list[Watcher] = []

    def begin(path: str) -> Watcher:
        watchers.append(Watcher(daemon.home, path, since=0))
        return watchers[-1]

    yield begin
    for watcher in watchers:
        watcher.store.close()
    daemon.kill()  # or a watcher would sit there until the next sign of life
    assert all(watcher.ended() for watcher in watchers)


def save(store: Store, path: str, step: int, *tiers: str) -> None:
    pending = store.save(path, {"w": np.full(1000, step)}, step=step, metadata={"loss": step / 10}, rank=0, world_size=1, replace=True)
    for tier in tiers:
        pending.wait(tier, timeout_s=60)


def test_each_publication_is_told_at_once_and_then_each_tier(daemon: DaemonProcess, watching: Callable[[str], Watcher]) -> None:
    with connect(home=daemon.home, start=False) as store:
        watcher = watching("/run")
        save(store, "/run/1", 1, "pfs")
        save(store, "/other/1", 1, "pfs")
        save(store, "/run/2", 2, "pfs")
        until("all of it is told", lambda: ("/run/2", "pfs") in watcher.told())
    for path in ("/run/1", "/run/2"):
        assert [tier for at, tier in watcher.told() if at == path] == [None, "nvme", "pfs"]
    assert {path for path, _ in watcher.told()} == {"/run/1", "/run/2"}
    first = watcher.heard[0]
    assert (first.step, first.metadata, first.kind) == (1, {"loss": 0.1}, "checkpoint")
    assert [event.sequence for event in watcher.heard] == sorted(event.sequence for event in watcher.heard)


def test_a_checkpoint_can_be_loaded_when_it_is_told(daemon: DaemonProcess) -> None:
    with connect(home=daemon.home, start=False) as store:
        events = store.watch("/run", since=0)
        save(store, "/run/1", 7)
        event = next(events)
        assert event.event == "published"
        assert store.load(event.path)["w"][0] == 7


def test_a_daemon_that_dies_in_between_costs_no_event_and_doubles_none(
    daemon: DaemonProcess, watching: Callable[[str], Watcher]
) -> None:
    with connect(home=daemon.home, start=False) as store:
        watcher = watching("/")
        save(store, "/run/1", 1, "pfs")
        until("the first is told", lambda: ("/run/1", "pfs") in watcher.told())
        pfs = daemon.home.parent / "pfs"
        pfs.rename(pfs.with_name("away"))
        pfs.write_text("not a folder")
        save(store, "/run/2", 2, "nvme")
        until("the second is told", lambda: ("/run/2", None) in watcher.told())
        daemon.kill()
        pfs.unlink()
        pfs.with_name("away").rename(pfs)
        daemon.start()
    with connect(home=daemon.home, start=False) as store:
        save(store, "/run/3", 3, "pfs")
        until("the third is told", lambda: ("/run/3", "pfs") in watcher.told())
        store.wait("/run/2", "pfs", timeout_s=60)
        until("the second is safer", lambda: ("/run/2", "pfs") in watcher.told())
    assert len(watcher.told()) == len(set(watcher.told())) == 9


def test_a_daemon_stops_though_somebody_watches(daemon: DaemonProcess, watching: Callable[[str], Watcher]) -> None:
    watcher = watching("/")
    with connect(home=daemon.home, start=False) as store:
        save(store, "/run/1", 1, "nvme")
        until("the watcher is there", lambda: watcher.heard or save(store, "/run/1", 1, "nvme"))
    assert daemon.stop() == 0


def test_it_is_plain_server_sent_events(daemon: DaemonProcess) -> None:
    with connect(home=daemon.home, start=False) as store:
        save(store, "/run/1", 1, "nvme")
        with daemon.http() as http, http.stream("GET", "/v1/watch", params={"path": "/run", "since": 0}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = []
            for line in response.iter_lines():
                lines.append(line)
                if line.startswith("event: published"):
                    break
        with daemon.http() as http:
            assert http.get("/v1/watch", params={"path": "relative"}).status_code == httpx.codes.BAD_REQUEST
        with pytest.raises(InvalidInput):
            next(store.watch("relative"))


def test_the_command_line_tells_them(daemon: DaemonProcess) -> None:
    shell = Shell(daemon.home)
    with connect(home=daemon.home, start=False) as store:
        save(store, "/run/1", 1, "pfs")
        (told,) = shell.ok("watch", "/run", "--since", 0, "-n", 1, "--json").lines
        assert (told["event"], told["path"], told["durability"]) == ("published", "/run/1", ["nvme", "pfs"])
        assert "published" in shell.ok("watch", "/run", "--since", 0, "-n", 1).out
