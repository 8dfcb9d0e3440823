"""What fsspec reads can be attached, too: best effort where the backend tells no version, and never longer than a bounded time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from ckptstore.errors import ConfigInvalid, InvalidInput, NotFound, StaleVersion, TierUnavailable
from ckptstore_server.readers.origin import FileVersion
from ckptstore_server.readers.origins.bounded import THREADS, BoundedStorage
from ckptstore_server.readers.origins.fsspec_storage import FsspecStorage
from ckptstore_server.readers.origins.gate import Gate
from tests.readers.places import Inside, content_of, inside
from tests.until import until


class Tagged(MemoryFileSystem):
    """A backend that tells an ETag."""

    protocol = "tagged"
    store: dict[str, Any] = {}  # noqa: RUF012 - as its parent has it
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("tagged://", "memory://")))

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().info(path, **options)
        if found["type"] == "file":
            found["ETag"] = f"{hash(self.store[self._strip_protocol(path)].getvalue()):x}"
        return found

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        """As a web server lists: names without sizes."""
        return [entry | {"size": None} for entry in super().ls(path, detail=True, **options)]


class Hanging(LocalFileSystem):
    """One whose server is gone."""

    protocol = "hanging"
    answers = threading.Event()
    asked = 0

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        Hanging.asked += 1
        self.answers.wait(60)
        found: dict[str, Any] = super().info(path, **options)
        return found


fsspec.register_implementation("tagged", Tagged)
fsspec.register_implementation("hanging", Hanging)


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Iterator[tuple[Any, str]]:
    """fsspec's own memory, below a folder of this test's own."""
    fs, root = fsspec.filesystem("memory"), f"/t{abs(hash(request.node.name)):x}"
    yield fs, root
    fs.rm(root, recursive=True)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Inside]:
    with inside(tmp_path / "home") as opened:
        yield opened


def version_of(storage: Any, name: str) -> FileVersion:
    found = storage.look(name)
    return FileVersion("v", f"/{name}", found.size_bytes, found.modified_s, "", name=name, upstream=found.upstream)


def test_it_is_shown_and_said_to_be_best_effort(tree: Inside, memory: tuple[Any, str]) -> None:
    fs, root = memory
    for name in ("a/one.bin", "a/b/two", "three"):
        fs.pipe_file(f"{root}/{name}", name.encode())
    tree.attach(f"memory:/{root}", "/m")
    assert tree.names("/m", 1) == ["a", "three"]
    assert tree.names("/m/a") == ["b", "one.bin"]
    file = tree.look("/m/a/one.bin")
    assert (file.size_bytes, file.best_effort, file.origin) == (9, True, f"memory:/{root}/a/one.bin")
    assert tree.open("/m/a/one.bin")[0].best_effort
    assert tree.read("/m/a/b/two") == b"a/b/two"
    opened, origin = tree.open("/m/three")
    assert content_of(opened, origin, 2, 4) == b"re"
    for missing in ("/m/none", "/m/three/x", "/m/a/none/x"):
        with pytest.raises(NotFound):
            tree.look(missing)
    with pytest.raises(InvalidInput):
        tree.open("/m/a/../../x")


@pytest.mark.parametrize("protocol", ["memory", "tagged"])
def test_a_file_that_changed_is_stale_and_then_new(tree: Inside, protocol: str) -> None:
    fs = fsspec.filesystem(protocol)
    fs.pipe_file("/changes/f", b"old")
    tree.attach(f"{protocol}://changes", "/m", refresh_s=3600)
    opened, origin = tree.open("/m/f")
    assert opened.best_effort == (protocol == "memory")
    assert content_of(opened, origin) == b"old"
    assert tree.run(tree.services.tree.list("/m")).entries[0] == tree.look("/m/f")
    fs.pipe_file("/changes/f", b"new")
    with pytest.raises(StaleVersion):
        content_of(opened, origin)
    assert tree.read("/m/f") == b"new"
    fs.rm_file("/changes/f")
    with pytest.raises(StaleVersion):
        tree.read("/m/f", opened.version)


def test_an_etag_tells_what_size_and_time_do_not() -> None:
    fs = fsspec.filesystem("tagged")
    fs.pipe_file("/same/f", b"old")
    storage = FsspecStorage("tagged://same", {})
    first = version_of(storage, "f")
    modified = fs.store["/same/f"].modified
    fs.pipe_file("/same/f", b"new")
    fs.store["/same/f"].modified = modified
    assert version_of(storage, "f").upstream != first.upstream
    with pytest.raises(StaleVersion):
        storage.read_into(first, 0, memoryview(bytearray(3)))


def test_names_that_no_path_has_are_left_out_and_counted(memory: tuple[Any, str]) -> None:
    fs, root = memory
    for name in ("good", "@latest", "new\nline", "x" * 201):
        fs.pipe_file(f"{root}/{name}", b"x")
    page = FsspecStorage(f"memory:/{root}", {}).page("", "", 100)
    assert ([entry.name for entry in page.entries], page.skipped) == (["good"], 3)


def test_a_protocol_or_options_that_fsspec_does_not_know_are_refused(tree: Inside) -> None:
    with pytest.raises(ConfigInvalid, match="is the fsspec package"):
        tree.attach("nosuch://x", "/m")
    with pytest.raises(InvalidInput, match="s3"):
        tree.attach("memory://x", "/m", credentials="profile")
    for name in ("token", "account_key", "password", "client_secret"):
        with pytest.raises(InvalidInput, match="secret") as refusal:
            tree.attach("memory://x", "/m", options={name: "hush"})
        assert "hush" not in str(refusal.value)


def test_a_backend_that_hangs_is_unavailable_in_time_and_holds_up_one_who_asks(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    Hanging.answers.set()
    storage = BoundedStorage(FsspecStorage(f"hanging://{tmp_path}", {}), timeout_s=1.0)
    storage.gate = Gate(pause_s=0.3, quick_s=0.5)
    opened, heard = version_of(storage, "f"), []
    storage.gate.on_down = heard.append
    Hanging.answers.clear()
    into = memoryview(bytearray(7))
    with pytest.raises(TierUnavailable, match="no answer within 1 s"):
        storage.read_into(opened, 0, into)
    Hanging.asked = 0
    for _ in range(20):
        with pytest.raises(TierUnavailable):
            storage.look("f")
    assert Hanging.asked < 10
    assert storage.gate.failure is not None
    assert [error.why for error in heard] == ["no answer within 1 s"]
    Hanging.answers.set()

    def back() -> bool:
        with contextlib.suppress(TierUnavailable):
            storage.read_into(opened, 0, into)
        return storage.gate.failure is None

    until("it answers again", back)
    assert bytes(into) == b"content"
    storage.close()


def test_calls_that_hang_are_few_and_do_not_keep_the_process(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    storage = BoundedStorage(FsspecStorage(f"hanging://{tmp_path}", {}), timeout_s=0.2)
    storage.gate = Gate(quick_s=3600)  # it is always asked
    Hanging.answers.clear()
    for _ in range(THREADS + 4):
        with pytest.raises(TierUnavailable):
            storage.look("f")
    hanging = [thread for thread in threading.enumerate() if thread.name == f"attached {storage.identity}"]
    assert len(hanging) == THREADS
    assert all(thread.daemon for thread in hanging)
    Hanging.answers.set()
    for thread in hanging:
        thread.join()
    assert storage.look("f").size_bytes == 7


def test_a_thread_that_comes_back_late_writes_into_nobodys_memory(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    Hanging.answers.set()
    storage = BoundedStorage(FsspecStorage(f"hanging://{tmp_path}", {}), timeout_s=0.2)
    opened = version_of(storage, "f")
    Hanging.answers.clear()
    buffer = bytearray(7)
    with pytest.raises(TierUnavailable):
        storage.read_into(opened, 0, memoryview(buffer))
    Hanging.answers.set()
    for thread in [thread for thread in threading.enumerate() if thread.name.startswith("attached")]:
        thread.join()
    assert buffer == bytes(7)
