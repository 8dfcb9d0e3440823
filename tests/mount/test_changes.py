"""Who remembers what is in the tree is told when it changes, whoever changed it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import ckptstore
from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Kind
from ckptstore.config import read_settings
from tests.contract.catalog_contract import TIERS, Saver
from tests.daemon_process import DaemonProcess, write_config


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    write_config(tmp_path / "home", tiers=[{"name": "nvme", "kind": "posix", "path": tmp_path / "nvme"}])
    with DaemonProcess(tmp_path / "home") as process:
        yield process


def asked(http: httpx.Client, seen: int, timeout_s: float = 20.0) -> dict[str, object]:
    answer: dict[str, object] = http.get("/v1/tree/changes", params={"seen": seen, "timeout_s": timeout_s}).raise_for_status().json()
    return answer


def test_a_change_on_another_node_is_told_without_a_word_from_it(daemon: DaemonProcess) -> None:
    """The other node shares nothing but the catalog."""
    other = Catalog.open(read_settings(daemon.home / "config.toml", home=daemon.home).effective_catalog_url, node="another")
    other.register_tiers(TIERS)
    with daemon.http() as http:
        seen = asked(http, -1)["seen"]
        assert isinstance(seen, int)
        told: list[dict[str, object]] = []
        waiting = threading.Thread(target=lambda: told.append(asked(http, seen)))
        waiting.start()
        began_s = time.monotonic()
        Saver(other).save("/from/elsewhere", kind=Kind.FILE)
        waiting.join()
    assert told == [{"seen": seen + 1, "paths": ["/from/elsewhere"]}]
    print(f"told after {time.monotonic() - began_s:.2f} s")
    other.close()


def test_nothing_is_told_when_nothing_changed_and_everything_after_a_removal(daemon: DaemonProcess, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(100))
    with daemon.http() as http, ckptstore.connect(home=daemon.home, start=False) as store:
        seen = asked(http, -1)["seen"]
        assert isinstance(seen, int)
        assert asked(http, seen, 0.0) == {"seen": seen, "paths": []}
        store.put(file, "/a/b")
        assert asked(http, seen) == {"seen": seen + 1, "paths": ["/a/b"]}
        store.rm("/a/b")
        assert asked(http, seen + 1)["paths"] is None
        assert http.get("/v1/tree/changes", params={"seen": -2}).status_code == 400


def test_a_follower_is_waited_for_and_one_that_does_not_come_back_is_given_up(daemon: DaemonProcess, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    acted: list[int] = []

    def follow() -> None:
        with daemon.http() as http:
            seen = asked(http, -1)["seen"]
            assert isinstance(seen, int)
            while seen < 3:
                answer = http.get("/v1/tree/changes", params={"seen": seen, "timeout_s": 20, "follower": "mount"}).raise_for_status().json()
                seen = answer["seen"]
                acted.append(seen)

    follower = threading.Thread(target=follow)
    follower.start()
    with daemon.http() as http, ckptstore.connect(home=daemon.home, start=False) as store:
        http.get("/v1/tree/changes", params={"seen": 0, "timeout_s": 0, "follower": "gone"}).raise_for_status()
        for turn in (1, 2, 3):
            store.put(file, f"/a/{turn}")
        follower.join()
        assert acted == sorted(set(acted)) and acted[-1] == 3
