"""What the kernel does for the mount: it reads hot files by itself, keeps what it was given, and lets nothing be changed."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.errors import AlreadyExists, NotFound
from ckptstore_client.mount import device, mounting
from tests.mount.mounts import Mounted, can_mount, mark, names_in
from tests.until import until

pytestmark = can_mount

DATA = os.urandom(5_000_003)
OTHER = os.urandom(4_000_001)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "models" / "sub").mkdir(parents=True)
    (folder / "models" / "hot.bin").write_bytes(DATA)
    (folder / "models" / "cold.bin").write_bytes(DATA)
    mark(folder / "models" / "cold.bin", "user.cold")
    (folder / "secret").write_text("not exported")
    return folder


@pytest.fixture(params=[True, False], ids=["passthrough", "ordinary"])
def mounted(request: pytest.FixtureRequest, tmp_path: Path, source: Path) -> Iterator[Mounted]:
    with Mounted(tmp_path, source=source, passthrough=request.param) as mount:
        yield mount


@pytest.fixture
def hot(tmp_path: Path, source: Path) -> Iterator[Mounted]:
    with Mounted(tmp_path, source=source) as mount:
        yield mount


def replace(file: Path, data: bytes) -> None:
    """As everything is replaced here: another file takes its name."""
    aside = file.with_name("aside")
    aside.write_bytes(data)
    aside.rename(file)


def test_a_hot_file_is_read_by_the_kernel_itself(hot: Mounted) -> None:
    """The process that serves is stopped: whatever is read meanwhile, it has not answered."""
    with open(hot / "models/hot.bin", "rb", buffering=0) as file, hot.nobody_serving():
        assert file.read(1000) == DATA[:1000]
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == DATA


def test_a_cold_file_and_one_without_passthrough_are_read_through_the_mount(mounted: Mounted) -> None:
    for name in ("models/hot.bin", "models/cold.bin"):
        assert (mounted / name).read_bytes() == DATA
        with open(mounted / name, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[3_000_000:] == DATA[3_000_000:]


def test_a_file_that_becomes_whole_while_it_is_open_is_read_both_ways_at_once(hot: Mounted, source: Path) -> None:
    with open(hot / "models/cold.bin", "rb", buffering=0) as cold:
        assert cold.read(10) == DATA[:10]
        os.removexattr(source / "models/cold.bin", "user.cold")
        with open(hot / "models/cold.bin", "rb", buffering=0) as now_hot:
            with hot.nobody_serving():
                assert now_hot.read() == DATA
            assert cold.read() == DATA[10:]
            assert os.fstat(cold.fileno()).st_ino == os.fstat(now_hot.fileno()).st_ino


def test_a_file_that_is_whole_no_more_is_opened_cold(hot: Mounted, source: Path) -> None:
    with open(hot / "models/hot.bin", "rb", buffering=0) as before:
        mark(source / "models/hot.bin", "user.cold")
        with open(hot / "models/hot.bin", "rb", buffering=0) as after:
            assert after.read() == before.read() == DATA


def test_many_open_one_hot_file_at_once_and_again(hot: Mounted) -> None:
    """The kernel refuses (EIO) a second backing id for an inode that is open."""
    failures: list[BaseException] = []

    def read_often() -> None:
        try:
            for _ in range(40):
                with open(hot / "models/hot.bin", "rb", buffering=0) as file:
                    assert file.read(64) == DATA[:64]
        except BaseException as error:  # noqa: BLE001 - it is what the test asserts on
            failures.append(error)

    readers = [threading.Thread(target=read_often) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert failures == []


def test_an_open_through_proc_gets_the_version_that_is_open(mounted: Mounted, source: Path) -> None:
    with open(mounted / "models/hot.bin", "rb", buffering=0) as file:
        replace(source / "models/hot.bin", OTHER)
        with open(f"/proc/self/fd/{file.fileno()}", "rb") as again:
            assert again.read() == DATA


@pytest.mark.parametrize("name", ["models/hot.bin", "models/cold.bin"])
def test_what_is_open_stays_what_it_was_and_the_next_open_is_the_new_version(mounted: Mounted, source: Path, name: str) -> None:
    with open(mounted / name, "rb", buffering=0) as old:
        mapped = mmap.mmap(old.fileno(), 0, prot=mmap.PROT_READ)
        assert old.read(5) == DATA[:5]
        replace(source / name, OTHER)
        assert (mounted / name).read_bytes() == OTHER
        assert old.read() == DATA[5:] and mapped[:] == DATA
        assert os.fstat(old.fileno()).st_size == len(DATA)
        assert (mounted / name).stat().st_size == len(OTHER)
        mapped.close()


def test_a_removed_file_is_gone_and_what_is_open_of_it_is_not(mounted: Mounted, source: Path) -> None:
    with open(mounted / "models/hot.bin", "rb", buffering=0) as open_file:
        (source / "models/hot.bin").unlink()
        with pytest.raises(FileNotFoundError):
            open(mounted / "models/hot.bin", "rb").close()
        assert open_file.read() == DATA


def test_nothing_can_be_changed(mounted: Mounted) -> None:
    file, folder = mounted / "models/hot.bin", mounted / "models"
    for change in (
        lambda: file.write_bytes(b""),
        lambda: (folder / "new").touch(),
        lambda: (folder / "new").mkdir(),
        lambda: file.unlink(),
        lambda: file.rename(folder / "other"),
        lambda: file.chmod(0o600),
        lambda: os.truncate(file, 0),
        lambda: os.link(file, folder / "link"),
        lambda: os.setxattr(file, "user.mine", b"1"),
        lambda: os.utime(file),
        lambda: (folder / "sub").rmdir(),
    ):
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EROFS


def test_nothing_outside_the_exported_path_is_reachable(tmp_path: Path, source: Path) -> None:
    (source / "models/inside").symlink_to("hot.bin")
    (source / "models/up").symlink_to("../secret")
    (source / "models/far").symlink_to("/etc/passwd")
    with Mounted(tmp_path, source=source, root="/models") as mount:
        assert (mount / "inside").read_bytes() == DATA and (mount / "inside").readlink() == Path("hot.bin")
        assert sorted(names_in(mount.path)) == ["cold.bin", "far", "hot.bin", "inside", "sub", "up"]
        assert os.path.samestat((mount / "sub/../..").stat(), mount.path.parent.stat()), "the kernel resolves `..` itself"
        for name in ("secret", "up", "far", "sub/../../source/models/../secret/x", "\xff\n"):
            with pytest.raises(OSError):
                open(mount / name, "rb").close()


def test_others_may_not_look_unless_that_was_asked_for(tmp_path: Path, source: Path) -> None:
    def as_nobody(mount: Mounted) -> int:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", str(mount / "models/hot.bin")]
        return subprocess.run(command, capture_output=True).returncode

    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    with Mounted(tmp_path / "alone", source=source) as mount:
        assert as_nobody(mount) != 0
    with Mounted(tmp_path / "shared", source=source, others=True) as mount:
        (tmp_path / "shared").chmod(0o755)
        assert as_nobody(mount) == 0


def test_attributes_are_those_of_the_source(mounted: Mounted, source: Path) -> None:
    seen, true = (mounted / "models/hot.bin").stat(), (source / "models/hot.bin").stat()
    assert (seen.st_size, seen.st_nlink, stat.S_IMODE(seen.st_mode)) == (true.st_size, 1, 0o444)
    assert abs(seen.st_mtime_ns - true.st_mtime_ns) < 1000
    assert os.getxattr(mounted / "models/hot.bin", "user.ckptstore.path") == b"/models/hot.bin"
    assert os.getxattr(mounted / "models/cold.bin", "user.ckptstore.tier") == b"remote"
    assert "user.ckptstore.version" in os.listxattr(mounted / "models/hot.bin")
    with pytest.raises(OSError) as caught:
        os.getxattr(mounted / "models/hot.bin", "user.other")
    assert caught.value.errno == errno.ENODATA
    space = os.statvfs(mounted.path)
    assert space.f_blocks * space.f_frsize > 0 and space.f_flag & os.ST_RDONLY


def test_a_large_folder_is_listed_once_each_and_keeps_to_what_is_there(mounted: Mounted, source: Path) -> None:
    names = {f"file-{number:05}" for number in range(5000)}
    (source / "large").mkdir()
    for name in names:
        (source / "large" / name).touch()
    for _ in range(2):
        listed = names_in(mounted / "large")
        assert len(listed) == 5000 and set(listed) == names
    (source / "large" / "file-00000").unlink()
    assert len(names_in(mounted / "large")) == 4999
    with os.scandir(mounted / "large") as found:
        assert all(entry.is_file() and entry.stat().st_size == 0 for entry in found)


def test_a_listing_can_go_back_and_on(mounted: Mounted, source: Path) -> None:
    for number in range(3000):
        (source / "models/sub" / f"n{number}").touch()
    out = subprocess.run(["find", str(mounted / "models/sub"), "-type", "f"], capture_output=True, text=True, check=True).stdout
    assert len(set(out.splitlines())) == 3000


def test_read_ahead_is_raised(mounted: Mounted) -> None:
    number = mounted.path.stat().st_dev
    place = Path(f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}/read_ahead_kb")
    until("it is raised, right after the first answer", lambda: int(place.read_text("ascii")) >= 8192)


def test_a_reader_that_is_interrupted_does_not_wait_for_its_bytes(mounted: Mounted, source: Path) -> None:
    mark(source / "models/cold.bin", "user.absent")
    reader = subprocess.Popen(["cat", str(mounted / "models/cold.bin")], stdout=subprocess.DEVNULL)
    until("it waits for its bytes", lambda: Path(f"/proc/{reader.pid}/syscall").read_text().split()[0] in ("0", "326", "40", "17"))
    reader.send_signal(signal.SIGINT)
    assert reader.wait(20) == -signal.SIGINT
    os.removexattr(source / "models/cold.bin", "user.absent")
    assert (mounted / "models/cold.bin").read_bytes() == DATA


def test_who_waits_for_bytes_holds_up_nobody_else(mounted: Mounted, source: Path) -> None:
    mark(source / "models/cold.bin", "user.absent")
    readers = [subprocess.Popen(["sha256sum", str(mounted / "models/cold.bin")], stdout=subprocess.PIPE) for _ in range(6)]
    assert (mounted / "models/hot.bin").read_bytes() == DATA
    assert names_in(mounted / "models/sub") == []
    assert all(reader.poll() is None for reader in readers)
    os.removexattr(source / "models/cold.bin", "user.absent")
    assert len({reader.communicate(timeout=60)[0] for reader in readers}) == 1


def test_mounting_says_what_is_wrong(tmp_path: Path, source: Path) -> None:
    with pytest.raises(NotFound, match="no folder"):
        device.mount(tmp_path / "none", allow_other=False)
    with pytest.raises(NotFound, match="no mount of ckptstore"):
        mounting.umount(tmp_path)
    with Mounted(tmp_path, source=source) as mount, pytest.raises(AlreadyExists):
        mounting.mount(mount._options, log=mount.log)


def test_a_mount_that_is_gone_leaves_an_empty_folder_and_no_process(tmp_path: Path, source: Path) -> None:
    with Mounted(tmp_path, source=source) as mount:
        worker = mount.worker
        assert names_in(mount.path)
    assert names_in(mount.path) == [] and device.device_of(mount.path) is None
    until("the serving process is gone", lambda: not Path(f"/proc/{worker}").exists())
