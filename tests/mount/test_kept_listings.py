"""A listing of attached storage is kept within its refresh time, by the kernel, and goes at once when the storage is detached."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import ckptstore
from ckptstore.errors import NotFound
from ckptstore.tree_messages import FileListing, TreeInfo
from ckptstore_client import Store
from ckptstore_client.mount import listings
from ckptstore_client.mount.believed import Believed
from ckptstore_client.mount.daemon_source import BELIEVED_S
from ckptstore_client.mount.folders import Folders
from ckptstore_client.mount.nodes import Node
from tests.daemon_process import DaemonProcess, write_config
from tests.mount.mounts import Mounted, can_mount, names_in
from tests.until import until

PAGE = 4
ENTRIES = 3 * PAGE + 1


class Pages:
    """An attached folder, page by page; `good_for_s` of each page, and how often each was asked for."""

    def __init__(self, good_for_s: Callable[[int], float]) -> None:
        self.infos = [TreeInfo(path=f"/run/{number:02}", kind="file", version=f"v{number}", origin="x") for number in range(ENTRIES)]
        self.good_for_s = good_for_s
        self.asked: Counter[str | None] = Counter()

    def list(self, path: str, after: str | None) -> FileListing:
        number = sum(self.asked.values())
        self.asked[after] += 1
        later = [info for info in self.infos if after is None or info.path > f"{path}/{after}"]
        more = later[PAGE - 1].path.rpartition("/")[2] if len(later) > PAGE else None
        return FileListing(entries=later[:PAGE], after=more, good_for_s=self.good_for_s(number))


def listed(source: Pages, *, told: bool = True) -> Folders:
    believed = Believed(source, believed_s=0.0)  # type: ignore[arg-type]
    believed.told_of(told)
    folders = Folders(source, believed)  # type: ignore[arg-type]
    handle, _ = folders.open("/run")
    folder = Node(2, "/run", "folder", "", 0, 0, None, hot=False)
    seen: list[bytes] = []
    while lines := folders.read(handle, folder, len(seen), 120, plus=False, may_wait=True):
        seen += [line.packed for line in lines]
    assert len(seen) == 2 + ENTRIES
    again = [line.packed for line in folders.read(handle, folder, 3, 4096, plus=False, may_wait=True)]  # it can go back
    assert again == seen[3 : 3 + len(again)] and again
    folders.close(handle)
    return folders


def test_it_is_kept_as_long_as_every_page_of_it_is_good() -> None:
    assert listed(Pages(lambda page: 3600.0)).open("/run")[1]
    assert not listed(Pages(lambda page: 0.0)).open("/run")[1]
    assert not listed(Pages(lambda page: 0.0 if page == 2 else 3600.0)).open("/run")[1]


def test_while_no_change_is_told_it_is_not_kept_since_a_detach_would_not_show() -> None:
    assert not listed(Pages(lambda page: 3600.0), told=False).open("/run")[1]


def test_each_page_is_asked_for_once_though_the_next_is_asked_for_ahead() -> None:
    source = Pages(lambda page: 3600.0)
    believed = Believed(source, believed_s=0.0)  # type: ignore[arg-type]
    folders = Folders(source, believed)  # type: ignore[arg-type]
    handle, _ = folders.open("/run")
    folder = Node(2, "/run", "folder", "", 0, 0, None, hot=False)
    offset = len(folders.read(handle, folder, 0, 120, plus=False, may_wait=True))
    assert len(folders.read(handle, folder, offset, 40, plus=False, may_wait=True)) == 1
    until("the next page is asked for before anybody wants it", lambda: sum(source.asked.values()) == 2)
    while lines := folders.read(handle, folder, offset, 120, plus=False, may_wait=True):
        offset += len(lines)
    assert set(source.asked.values()) == {1} and len(source.asked) == 4


def read_whole(folders: Folders, offset: int = 0) -> tuple[list[bytes], bool]:
    handle, unchanged = folders.open("/run")
    folder = Node(2, "/run", "folder", "", 0, 0, None, hot=False)
    seen: list[bytes] = []
    while lines := folders.read(handle, folder, offset + len(seen), 4096, plus=True, may_wait=True):
        seen += [line.packed for line in lines]
    folders.close(handle)
    return seen, unchanged


def test_a_listing_that_the_kernel_has_lost_is_given_again_without_asking() -> None:
    source = Pages(lambda page: 3600.0)
    folders = listed(source)
    first, _ = read_whole(folders)
    asked = source.asked.copy()
    assert read_whole(folders) == (first, True)
    assert read_whole(folders, offset=5) == (first[5:], True)
    assert source.asked == asked
    folders.changed("/run")
    source.infos = source.infos[1:]
    after, unchanged = read_whole(folders)
    assert not unchanged and len(after) == len(first) - 1 and source.asked != asked


def test_what_was_being_read_when_a_change_was_told_is_not_kept() -> None:
    source = Pages(lambda page: 3600.0)
    folders = listed(source)
    folders.changed(None)
    handle, _ = folders.open("/run")
    folder = Node(2, "/run", "folder", "", 0, 0, None, hot=False)
    offset = 0
    while lines := folders.read(handle, folder, offset, 120, plus=False, may_wait=True):
        if not offset:
            folders.read(handle, folder, 2, 120, plus=False, may_wait=True)
            folders.changed("/run")
        offset += len(lines)
    assert not folders.open("/run")[1]
    asked = source.asked.copy()
    read_whole(folders)
    assert source.asked != asked


def test_no_more_lines_are_kept_than_may_be_and_the_newest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "KEPT_LINES", 25)
    kept = listings.Listings()
    for path in ("/a", "/b", "/c"):
        listing = kept.begin(path)
        for number in range(10):
            listing.add(number, listings.FolderLine(b"line"))
        kept.end(path, listing, 10)
    assert [(found.is_whole, len(found.lines or ())) for path in "abc" if (found := kept.current(f"/{path}"))] == [
        (False, 0), (True, 10), (True, 10)
    ]  # fmt: skip


# --- with the kernel -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def daemon(place: Path) -> Iterator[DaemonProcess]:
    for folder in ("one", "two"):
        (place / folder).mkdir()
        for number in range(2500):
            (place / folder / f"{folder}-{number:04}").touch()
    write_config(place / "home", tiers=[{"name": "nvme", "kind": "posix", "path": place / "nvme"}])
    with DaemonProcess(place / "home") as process:
        yield process


@pytest.fixture
def store(daemon: DaemonProcess) -> Iterator[Store]:
    with ckptstore.connect(home=daemon.home, start=False) as opened:
        yield opened
        for attachment in opened.attachments():
            opened.detach(attachment.path)


@contextmanager
def stopped(daemon: DaemonProcess) -> Iterator[None]:
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """The folder by a name that needs no look-up."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@can_mount
def test_within_the_refresh_time_nobody_is_asked_again_and_a_detach_shows_at_once(place: Path, daemon: DaemonProcess, store: Store) -> None:
    store.attach(str(place / "one"), "/models/public", refresh_s=3600)
    names = [f"one-{number:04}" for number in range(2500)]
    with Mounted(place, source=place / "home", plain=False, root="/models") as mounted, ThreadPoolExecutor(1) as reader:
        assert names_in(mounted / "public") == names
        with folder(mounted / "public") as inside:  # its name is asked for each second; what is in it is not

            def is_kept() -> bool:
                """Not yet, where nobody told the mount of changes when it listed the folder: it had just been made."""
                assert names_in(inside) == names
                time.sleep(2 * BELIEVED_S)  # what is promised is that this time does not matter
                with stopped(daemon):  # whether the kernel still has it (its page cache may be short of memory) or not
                    listing = reader.submit(names_in, inside)
                    with suppress(TimeoutError):
                        return listing.result(timeout=5) == names
                return False

            until("the listing is kept", is_kept)
        store.detach("/models/public")
        with pytest.raises((FileNotFoundError, NotFound)):
            names_in(mounted / "public")
        store.attach(str(place / "two"), "/models/public", refresh_s=3600)
        with ThreadPoolExecutor(1) as patient:  # told without its name, it shows when the kernel asks again, after a second
            patient.submit(until, "the other folder is there", lambda: (mounted / "public").exists()).result(timeout=15)
        assert names_in(mounted / "public") == [f"two-{number:04}" for number in range(2500)]


@can_mount
def test_beyond_the_refresh_time_a_new_file_shows(place: Path, daemon: DaemonProcess, store: Store) -> None:
    store.attach(str(place / "one"), "/models/soon", refresh_s=0.5)
    with Mounted(place, source=place / "home", plain=False, root="/models") as mounted:
        assert "new" not in names_in(mounted / "soon")
        (place / "one" / "new").touch()
        until("the new file shows", lambda: "new" in names_in(mounted / "soon"))
        (place / "one" / "new").unlink()
