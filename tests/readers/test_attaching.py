"""Attaching as a user does it: on the daemon's node, from Python and from the command line; and nothing of ours comes to lie there."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore
from ckptstore.errors import AlreadyExists, CkptStoreError, InvalidInput, NotFound, PathConflict, TierUnavailable, Unauthorized
from ckptstore_bench.ports import free_port
from ckptstore_client import Store
from ckptstore_client.cli.main import run
from tests.contract.store_place import TOKEN, WAIT_S, start
from tests.daemon_process import DaemonProcess
from tests.e2e.shell import Outcome
from tests.until import until

LARGE = os.urandom(9_000_000)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DaemonProcess, str]]:
    port = free_port()
    with start(tmp_path_factory.mktemp("home"), port) as process:
        yield process, f"http://127.0.0.1:{port}"


@pytest.fixture
def store(served: tuple[DaemonProcess, str]) -> Iterator[Store]:
    with ckptstore.connect(home=served[0].home, start=False) as store:
        yield store
        for attachment in store.attachments():
            store.detach(attachment.path)


class CommandLine:
    """The command line in this process, for this home."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Outcome:
        self._capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Outcome(code, *self._capsys.readouterr())

    def ok(self, *arguments: str | Path) -> Outcome:
        outcome = self(*arguments)
        assert outcome.code == 0, outcome
        return outcome


@pytest.fixture
def shell(
    served: tuple[DaemonProcess, str], store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    monkeypatch.setenv("CKPTSTORE_HOME", str(served[0].home))
    return CommandLine(capsys)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    (models / "org" / "name").mkdir(parents=True)
    (models / "org" / "name" / "model.safetensors").write_bytes(LARGE)
    (models / "org" / "name" / "config.json").write_bytes(b"{}")
    (models / "empty").write_bytes(b"")
    (models / "out").symlink_to("/etc")
    return models


def test_attached_files_are_seen_with_where_they_lie(store: Store, models: Path) -> None:
    made = store.attach(str(models), "/models/public", refresh_s=5)
    assert (made.path, made.url, made.refresh_s, made.read_only) == ("/models/public", str(models), 5, True)
    assert store.attachments() == [made]
    assert [(entry.name, entry.kind, entry.origin) for entry in store.ls("/models")] == [("public", "folder", str(models))]
    skipped: list[int] = []
    assert [entry.name for entry in store.ls("/models/public", on_skipped=skipped.append)] == ["empty", "org"]
    assert skipped == [1]
    file = store.stat("/models/public/org/name/model.safetensors")
    assert (file.kind, file.size_bytes, file.durability) == ("file", len(LARGE), [])
    assert file.origin == str(models / "org/name/model.safetensors")
    usage = store.du("/models/public")
    assert (usage.files, usage.size_bytes, usage.publications, usage.complete) == (3, len(LARGE) + 2, 0, True)
    assert store.du("/models/public/org/name/config.json").size_bytes == 2
    assert store.du("/").attached == ["/models/public"]


def test_nothing_is_saved_put_or_removed_where_storage_is_attached(store: Store, models: Path) -> None:
    store.attach(str(models), "/models/public")
    name = "/models/public/org/name/config.json"
    tries: list[Any] = [
        lambda: store.save("/models/public/mine", {"w": np.zeros(3)}).wait("nvme", timeout_s=WAIT_S),
        lambda: store.save("/models/public", {"w": np.zeros(3)}, replace=True).wait("nvme", timeout_s=WAIT_S),
        lambda: store.put(models / "empty", "/models/public/org/mine"),
        lambda: store.put(models / "empty", name, replace=True),
        lambda: store.rm(name),
        lambda: store.rm("/models/public", recursive=True),
        lambda: store.rm("/models", recursive=True),
        lambda: store.mv("/models", "/others"),
        lambda: store.attach(str(models), "/models/public/org"),
        lambda: store.attach(str(models), "/models"),
    ]
    for attempt in tries:
        with pytest.raises(PathConflict, match=r"attached|entries"):
            attempt()
    with pytest.raises(AlreadyExists):
        store.attach(str(models / "org"), "/models/public")
    assert (models / "org/name/config.json").read_bytes() == b"{}"
    assert sorted(entry.name for entry in models.iterdir()) == ["empty", "org", "out"]


def test_what_is_published_is_not_attached_over(store: Store, models: Path) -> None:
    store.put(models / "empty", "/taken/file")
    for path in ("/taken/file", "/taken", "/taken/file/below"):
        with pytest.raises((AlreadyExists, PathConflict)):
            store.attach(str(models), path)
    with pytest.raises(InvalidInput):
        store.attach(str(models), "/@latest")
    with pytest.raises(InvalidInput, match="read"):
        store.attach(str(models), "/m", read_only=False)
    with pytest.raises(NotFound):
        store.detach("/taken/file")
    assert store.attachments() == []


def test_it_is_no_checkpoint_and_that_is_said(store: Store, models: Path) -> None:
    store.attach(str(models), "/m")
    for attempt in (lambda: store.load("/m/org/name"), lambda: store.wait("/m/empty", "nvme", timeout_s=1)):
        with pytest.raises(NotFound, match="attached storage"):
            attempt()


def test_a_file_and_a_folder_of_it_are_got(store: Store, models: Path, tmp_path: Path) -> None:
    store.attach(str(models), "/m")
    heard: list[tuple[int, int]] = []
    assert store.get("/m/org/name/model.safetensors", tmp_path / "one", progress=lambda *now: heard.append(now)).read_bytes() == LARGE
    assert heard[-1] == (len(LARGE), len(LARGE))
    got = store.get("/m", tmp_path / "all")
    assert (got / "org/name/model.safetensors").read_bytes() == LARGE
    assert sorted(str(file.relative_to(got)) for file in got.rglob("*")) == sorted(
        ["empty", "org", "org/name", "org/name/config.json", "org/name/model.safetensors"]
    )
    with pytest.raises(AlreadyExists):
        store.get("/m/empty", tmp_path / "one")
    with pytest.raises(NotFound):
        store.get("/m/none", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_file_that_is_replaced_while_it_is_got_is_wholly_old_or_new(store: Store, tmp_path: Path) -> None:
    models, bodies = tmp_path / "changing", [bytes([number]) * 20_000_000 for number in (1, 2)]
    models.mkdir()
    (models / "f").write_bytes(bodies[0])
    store.attach(str(models), "/m", refresh_s=0)
    started = threading.Event()

    def replace() -> None:
        started.wait(WAIT_S)
        (models / "new").write_bytes(bodies[1])
        (models / "new").rename(models / "f")

    thread = threading.Thread(target=replace)
    thread.start()
    got = store.get("/m/f", tmp_path / "got", progress=lambda *_: started.set())
    thread.join()
    assert got.read_bytes() in bodies
    assert store.get("/m/f", tmp_path / "again").read_bytes() == bodies[1]


def test_attaching_is_for_the_daemons_own_node(served: tuple[DaemonProcess, str], store: Store, models: Path) -> None:
    store.attach(str(models), "/m")
    with ckptstore.connect(served[1], token=TOKEN) as far:
        for attempt in (lambda: far.attach("/etc", "/x"), lambda: far.detach("/m")):
            with pytest.raises(Unauthorized, match="own node"):
                attempt()
        assert [one.path for one in far.attachments()] == ["/m"]
        assert [entry.name for entry in far.ls("/m")] == ["empty", "org"]


def test_attachments_outlive_the_daemon(tmp_path: Path, models: Path) -> None:
    with start(tmp_path / "home", free_port()) as daemon:
        with ckptstore.connect(home=daemon.home, start=False) as store:
            made = store.attach(str(models), "/m")
        daemon.kill()
        daemon.start()
        with ckptstore.connect(home=daemon.home, start=False) as store:
            assert store.attachments() == [made]
            assert store.get("/m/org/name/config.json", tmp_path / "got").read_bytes() == b"{}"


def test_what_was_read_is_there_for_the_next_daemon_though_the_origin_is_gone(tmp_path: Path) -> None:
    models, name = tmp_path / "models", "/m/org/model.safetensors"
    (models / "org").mkdir(parents=True)
    for file in ("model.safetensors", "never read"):
        (models / "org" / file).write_bytes(LARGE)
    with start(tmp_path / "home", free_port()) as daemon:
        with ckptstore.connect(home=daemon.home, start=False) as store:
            store.attach(str(models), "/m", refresh_s=0)
            store.get(name, tmp_path / "first")
            assert until("it is whole here", lambda: store.cache.status().held_bytes >= len(LARGE))
        assert daemon.stop() == 0
        models.rename(tmp_path / "gone")
        daemon.start()
        with ckptstore.connect(home=daemon.home, start=False) as store:
            assert store.tree.look("/m/org").kind == "folder"
            assert store.get(name, tmp_path / "second").read_bytes() == LARGE
            for other in ("/m/org/never read", "/m/none"):
                with pytest.raises(TierUnavailable):
                    store.get(other, tmp_path / "third")
            with pytest.raises(TierUnavailable):
                list(store.ls("/m/org"))


# --- the command line ------------------------------------------------------------------------------------------------------------------


def test_the_command_line_attaches_shows_and_detaches(shell: CommandLine, models: Path, tmp_path: Path) -> None:
    made = shell.ok("attach", models, "/models/public", "--read-only", "--refresh", "1m30s", "--json").document
    assert (made["path"], made["url"], made["refresh_s"], made["down"]) == ("/models/public", str(models), 90.0, None)
    assert [one["path"] for one in shell.ok("attachments", "--json").document["attachments"]] == ["/models/public"]
    assert str(models) in shell.ok("attachments").out
    assert str(models) in shell.ok("ls", "-l", "/models").out
    listed = shell.ok("ls", "/models/public")
    assert listed.out.split() == ["empty", "org/"]
    assert "1 more are left out" in listed.err
    told = shell.ok("stat", "/models/public/org/name/config.json").out
    assert str(models / "org/name/config.json") in told
    assert "at /models/public" in shell.ok("du", "/").out.replace("\n", " ")
    assert "8.6 MiB in 3 files" in shell.ok("du", "/models/public").out
    shell.ok("get", "/models/public/org/name", tmp_path / "got")
    assert (tmp_path / "got" / "model.safetensors").read_bytes() == LARGE
    for arguments in (("rm", "-r", "/models/public"), ("put", models / "empty", "/models/public/x")):
        refused = shell(*arguments)
        assert (refused.code, refused.out) == (PathConflict.exit_code, "")
        assert "attached" in refused.err
    assert shell.ok("detach", "/models/public").out == f"detached {models} from /models/public\n"
    assert shell.ok("attachments").out == "nothing is attached\n"
    assert shell("ls", "/models").code == NotFound.exit_code


def test_what_is_empty_is_attached_with_a_word_about_it(shell: CommandLine, tmp_path: Path) -> None:
    attached = shell.ok("attach", tmp_path, "/m")
    assert "is the URL right?" in attached.err
    (tmp_path / "f").write_bytes(b"x")
    shell.ok("detach", "/m")
    assert shell.ok("attach", tmp_path, "/m").err == ""


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["relative", "/m"], InvalidInput),
        (["/nowhere/at/all", "/m"], TierUnavailable),
        (["s3://bucket", "m"], InvalidInput),
        (["s3://bucket", "/m", "--credentials", "nobody"], InvalidInput),
        (["memory://x", "/m", "--option", "secret_key=hush"], InvalidInput),
        (["memory://x", "/m", "--option", "novalue"], InvalidInput),
        (["s3://bucket", "/m", "--option", "a=1", "--option", "a=2"], InvalidInput),
        (["/etc", "/m", "--refresh", "soon"], InvalidInput),
    ],
)
def test_what_cannot_be_attached_is_refused_by_name(shell: CommandLine, arguments: list[str], error: type[CkptStoreError]) -> None:
    refused = shell("attach", *arguments)
    assert refused.code == error.exit_code, refused
    assert refused.err.startswith("ckptstore: ")
    assert "hush" not in refused.err
    assert refused.err.count("\n") == 1
