"""The serving process may die at any moment: no open file breaks, no byte is wrong, and readers go on when the next one serves."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mount.mounts import Mounted, can_mount, mark, names_in
from tests.until import until

pytestmark = can_mount

DATA = os.urandom(9_000_001)
OTHER = os.urandom(3_000_000)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    for name in ("hot", "cold", "sub/late"):
        (folder / name).write_bytes(DATA)
    mark(folder / "cold", "user.cold")
    mark(folder / "sub/late", "user.cold")
    for number in range(200):
        (folder / "sub" / f"small-{number}").write_bytes(b"%d" % number)
    return folder


@pytest.fixture
def mounted(tmp_path: Path, source: Path) -> Iterator[Mounted]:
    with Mounted(tmp_path, source=source) as mount:
        yield mount


def test_open_files_and_folders_outlive_the_process_that_served_them(mounted: Mounted, source: Path) -> None:
    inside = os.open(mounted / "sub", os.O_RDONLY)
    with open(mounted / "hot", "rb", buffering=0) as hot, open(mounted / "cold", "rb", buffering=0) as cold:
        assert (hot.read(10), cold.read(10)) == (DATA[:10], DATA[:10])
        for name in ("hot", "cold"):  # what is open is a version that only its descriptor still has
            (source / "aside").write_bytes(OTHER)
            (source / "aside").rename(source / name)
        mounted.kill_worker()
        assert hot.read() == DATA[10:]
        assert cold.read() == DATA[10:]
        assert (mounted / "hot").read_bytes() == (mounted / "cold").read_bytes() == OTHER
        assert len(names_in(Path(f"/proc/self/fd/{inside}"))) == 201
    os.close(inside)


def test_a_listing_goes_on_where_it_was(mounted: Mounted, source: Path) -> None:
    for number in range(4000):
        (source / "sub" / f"more-{number:04}").touch()
    with os.scandir(mounted / "sub") as found:
        names = [next(found).name]
        mounted.kill_worker()
        names += [entry.name for entry in found]
    assert len(names) == len(set(names)) == 4201


def test_who_waited_for_bytes_is_answered_by_the_successor(mounted: Mounted, source: Path) -> None:
    mark(source / "sub/late", "user.absent")
    answers: list[bytes] = []
    readers = [threading.Thread(target=lambda: answers.append((mounted / "sub/late").read_bytes())) for _ in range(4)]
    for reader in readers:
        reader.start()
    for _ in range(4):  # a successor that is killed before it is told anything, too
        mounted.kill_worker()
    assert answers == []
    os.removexattr(source / "sub/late", "user.absent")
    for reader in readers:
        reader.join()
    assert answers == [DATA] * 4


def test_a_replacement_on_request_breaks_nothing(mounted: Mounted) -> None:
    with open(mounted / "cold", "rb", buffering=0) as cold:
        before = mounted.worker
        os.kill(mounted.holder, signal.SIGHUP)
        until("another process serves", lambda: mounted.worker not in (0, before))
        assert cold.read() == DATA


def test_nothing_of_closed_files_is_kept(mounted: Mounted) -> None:
    """After kills, closes and more opens, the holder has no descriptor left of what is closed."""
    for name in ("cold", "sub/late"):
        with open(mounted / name, "rb") as file:
            mounted.kill_worker()
            assert file.read(100) == DATA[:100]
    held = lambda: [place for fd in _descriptors(mounted.holder) if "source" in (place := _place(mounted.holder, fd))]  # noqa: E731
    until("the holder has let go", lambda: not held())


def test_a_mount_without_a_holder_goes_on_and_ends_with_an_error_for_readers(tmp_path: Path, source: Path) -> None:
    with Mounted(tmp_path, source=source) as mount, open(mount / "cold", "rb", buffering=0) as cold, open(mount / "hot", "rb") as hot:
        worker = mount.worker
        os.kill(mount.holder, signal.SIGKILL)
        assert cold.read(100) == DATA[:100]
        os.kill(worker, signal.SIGKILL)
        until("the device is closed", lambda: not Path(f"/proc/{worker}/fd").exists() or not names_in(Path(f"/proc/{worker}/fd")))
        with pytest.raises(OSError, match=r"not connected|abort"):
            names_in(mount.path)
        assert hot.read() == DATA, "the kernel reads a hot file without anybody"


def test_a_mount_that_cannot_be_served_is_taken_away(tmp_path: Path, source: Path) -> None:
    with Mounted(tmp_path, source=source) as mount:
        os.kill(mount.holder, signal.SIGTERM)
        until("it is gone", lambda: not os.path.ismount(mount.path))


@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=pytest.mark.soak)])
def test_killed_at_random_moments_under_load_no_reader_sees_a_wrong_byte_or_an_error(mounted: Mounted, kills: int) -> None:
    print("seed", seed := random.randrange(1 << 32))
    chance, end, failures = random.Random(seed), threading.Event(), []

    def read_on(number: int) -> None:
        own = random.Random(seed + number)
        try:
            while not end.is_set():
                name = own.choice(["hot", "cold", "sub/late", "sub/small-7"])
                with open(mounted / name, "rb", buffering=0) as file:
                    start = own.randrange(len(DATA))
                    file.seek(start)
                    wanted = b"7"[start:] if "small" in name else DATA[start : start + 100_000]
                    assert file.read(100_000) == wanted
                assert len(names_in(mounted / "sub")) == 201
        except BaseException as error:
            failures.append(error)
            raise

    readers = [threading.Thread(target=read_on, args=(number,)) for number in range(4)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(kills):
            mounted.kill_worker()
            end.wait(chance.random())
    finally:
        end.set()
        for reader in readers:
            reader.join()
    assert failures == []
    assert subprocess.run(["cmp", mounted / "cold", mounted / "sub/late"], timeout=60).returncode == 0


def _descriptors(pid: int) -> list[str]:
    return names_in(Path(f"/proc/{pid}/fd"))


def _place(pid: int, fd: str) -> str:
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/fd/{fd}").readlink())
    return ""
