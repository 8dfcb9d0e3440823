"""An attached folder shows what is in it and nothing else, and a file that is read is one version of it or a stale error."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.errors import AlreadyExists, InvalidInput, NotFound, PathConflict, StaleVersion, TierUnavailable
from ckptstore_server.readers.origin import FileVersion
from ckptstore_server.readers.origins import folder as folder_module
from ckptstore_server.readers.origins.folder import FolderStorage
from tests.daemon_process import write_config
from tests.readers.places import Inside, content_of, inside
from tests.until import until

HOSTILE = [b"with\nnewline", b"\xff\xfe not utf-8", b"@latest", b"@other", b"x" * 201, b"tab\there"]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    models = tmp_path / "models"
    (models / "org" / "name").mkdir(parents=True)
    (models / "org" / "name" / "config.json").write_bytes(b"{}")
    (models / "é ü.bin").write_bytes(b"unicode")
    return models


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Inside]:
    with inside(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are old enough to be trusted after a fifth of a second."""
    monkeypatch.setattr(folder_module, "YOUNG_S", 0.2)


def version_of(storage: FolderStorage, name: str) -> FileVersion:
    found = storage.look(name)
    return FileVersion("v", f"/{name}", found.size_bytes, found.modified_s, "", name=name, upstream=found.upstream)


def test_what_lies_there_is_shown_with_where_it_is(tree: Inside, models: Path) -> None:
    tree.attach(models, "/m/public")
    assert tree.names("/m") == ["public"]
    assert tree.run(tree.services.tree.list("/m")).entries == [tree.look("/m/public")]
    assert tree.names("/m/public") == ["org", "é ü.bin"]
    root, file = tree.look("/m/public"), tree.look("/m/public/org/name/config.json")
    assert (root.kind, root.origin) == ("folder", str(models))
    assert (file.kind, file.size_bytes, file.origin) == ("file", 2, str(models / "org/name/config.json"))
    assert file.modified_s == pytest.approx((models / "org/name/config.json").stat().st_mtime)
    assert (file.durability, file.whole, file.sha256) == ((), False, None)
    for path in ("/m/public/none", "/m/public/é ü.bin/below"):
        with pytest.raises(NotFound):
            tree.look(path)


def test_a_young_file_is_waited_for_and_an_old_one_not(models: Path) -> None:
    young = FolderStorage(models, young_s=3600).look("é ü.bin")
    assert young.best_effort
    assert 3500 < young.settles_in_s <= 3600
    old = FolderStorage(models, young_s=0).look("é ü.bin")
    assert (old.best_effort, old.settles_in_s, old.upstream) == (False, 0, young.upstream)


def test_a_file_that_changes_while_it_is_opened_is_opened_as_what_it_became(tree: Inside, models: Path, soon: None) -> None:
    tree.attach(models, "/m")
    file = models / "new.bin"
    file.write_bytes(b"first")
    first = tree.look("/m/new.bin")
    assert first.best_effort
    file.write_bytes(b"second")
    assert tree.read("/m/new.bin") == b"second"
    assert tree.look("/m/new.bin").version != first.version


def test_a_file_that_never_rests_is_a_stale_error_in_bounded_time(tree: Inside, models: Path, soon: None) -> None:
    tree.attach(models, "/m")
    stop = threading.Event()

    def write() -> None:
        with (models / "log").open("ab", buffering=0) as log:
            while not stop.wait(0.01):
                log.write(b"line\n")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises((StaleVersion, NotFound), match=r"being written|nothing"):
            while True:
                tree.open("/m/log")
    finally:
        stop.set()
        writer.join()


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("change", ["replace", "rewrite", "append", "truncate", "remove", "keep size and mtime", "become a folder"])
def test_whatever_changes_upstream_an_open_file_is_the_old_one_or_stale(tree: Inside, models: Path, change: str) -> None:
    tree.attach(models, "/m")
    file = models / "a.bin"
    file.write_bytes(b"old" * 1000)
    opened, origin = tree.open("/m/a.bin")
    assert content_of(opened, origin, 3, 6) == b"old"
    status = file.stat()
    if change in ("replace", "keep size and mtime"):
        (models / "b.bin").write_bytes(b"new" * 1000)
        os.utime(models / "b.bin", ns=(status.st_atime_ns, status.st_mtime_ns))
        (models / "b.bin").rename(file)
    elif change == "rewrite":
        file.write_bytes(b"new" * 1000)
    elif change == "append":
        with file.open("ab") as appending:
            appending.write(b"new")
    elif change == "truncate":
        os.truncate(file, 10)
    else:
        file.unlink()
        if change == "become a folder":
            file.mkdir()
    with pytest.raises(StaleVersion):
        content_of(opened, origin)
    with pytest.raises(StaleVersion):
        tree.open("/m/a.bin", opened.version)
    if change not in ("remove", "become a folder"):
        assert tree.read("/m/a.bin") == file.read_bytes()
        assert tree.open("/m/a.bin")[0].version != opened.version


def test_what_was_asked_for_is_known_for_the_refresh_time_and_a_stale_read_ends_that(tree: Inside, models: Path, soon: None) -> None:
    tree.attach(models, "/m", refresh_s=3600)
    opened, origin = tree.open("/m/é ü.bin")
    (models / "é ü.bin").write_bytes(b"changed")
    assert tree.look("/m/é ü.bin").version == opened.version
    with pytest.raises(StaleVersion):
        content_of(opened, origin)
    assert tree.read("/m/é ü.bin") == b"changed"


def test_a_removed_file_is_stale_for_who_has_it_and_missing_for_others(tree: Inside, models: Path, soon: None) -> None:
    tree.attach(models, "/m")
    opened, origin = tree.open("/m/org/name/config.json")
    (models / "org/name/config.json").unlink()
    with pytest.raises(StaleVersion):
        content_of(opened, origin)
    with pytest.raises(NotFound):
        tree.open("/m/org/name/config.json")


# --- nothing outside -----------------------------------------------------------------------------------------------------------------


def test_links_that_lead_out_are_neither_shown_nor_followed(tree: Inside, models: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (models / "sub").mkdir()
    inner = {"near": "org/name/config.json", "sub/up": "../org/name/config.json"}
    outer = {
        "absolute": str(models / "org/name/config.json"),
        "out": "../secret",
        "sub/out": "../../secret",
        "root": "/",
        "self": "/proc/self/root",
        "dangling": "nowhere",
        "loop": "loop",
        "parent": "..",
        "folder": "org",
    }
    for name, target in (inner | outer).items():
        (models / name).symlink_to(target)
    tree.attach(models, "/m")
    assert tree.names("/m") == ["near", "org", "sub", "é ü.bin"]
    assert tree.names("/m/sub") == ["up"]
    assert tree.run(tree.services.tree.list("/m")).skipped == len(outer) - 1
    assert [tree.look(f"/m/{name}").size_bytes for name in inner] == [2, 2]
    for name in outer.keys() - {"folder"}:
        with pytest.raises(NotFound):
            tree.open(f"/m/{name}")
    for path in ("/m/out/x", "/m/root/etc/passwd", "/m/parent/secret", "/m/self/etc/passwd"):
        with pytest.raises(NotFound):
            tree.open(path)
    for path in ("/m/../secret", "/m/sub/../../secret", "/m//etc/passwd", "/m/./near", "/m/near\0"):
        with pytest.raises(InvalidInput):
            tree.open(path)


def test_a_folder_swapped_for_a_link_in_the_middle_never_lets_a_reader_out(models: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_bytes(b"outside!")
    storage, stop = FolderStorage(models, young_s=0), threading.Event()
    name = models / "org" / "name"
    (models / "link").symlink_to(tmp_path / "outside")

    def swap() -> None:
        while not stop.is_set():
            name.rename(models / "aside")
            (models / "link").rename(name)
            name.rename(models / "link")
            (models / "aside").rename(name)

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen = {"there": 0, "not": 0}
    try:
        while min(seen.values()) < 50:
            try:
                assert storage.look("org/name/config.json").size_bytes == 2
                seen["there"] += 1
            except NotFound:
                seen["not"] += 1
    finally:
        stop.set()
        swapper.join()


def test_pipes_devices_and_names_that_no_path_has_are_left_out_and_counted(tree: Inside, models: Path) -> None:
    os.mkfifo(models / "pipe")
    for name in HOSTILE:
        (Path(os.fsdecode(os.fsencode(models) + b"/" + name))).write_bytes(b"x")
    tree.attach(models, "/m")
    page = tree.run(tree.services.tree.list("/m"))
    assert [entry.path for entry in page.entries] == ["/m/org", "/m/é ü.bin"]
    assert page.skipped == len(HOSTILE) + 1
    with pytest.raises(NotFound):
        tree.open("/m/pipe")


def test_paths_that_would_be_too_long_are_left_out(tree: Inside, models: Path) -> None:
    deep = models / Path(*["d" * 190] * 3)
    deep.mkdir(parents=True)
    (deep / ("f" * 190)).write_bytes(b"x")
    (deep / "short").write_bytes(b"x")
    tree.attach(models, "/" + "p" * 100)
    folder = "/" + "p" * 100 + ("/" + "d" * 190) * 3
    page = tree.run(tree.services.tree.list(folder))
    assert ([entry.path for entry in page.entries], page.skipped) == ([f"{folder}/short"], 1)


def test_the_stores_own_folders_are_refused(tree: Inside, models: Path, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "home", tmp_path / "home" / "nvme", Path("/")):
        with pytest.raises(InvalidInput, match="own"):
            tree.attach(place, "/m")
    (tmp_path / "way").symlink_to(tmp_path / "home")
    with pytest.raises(InvalidInput, match="own"):
        tree.attach(tmp_path / "way", "/m")


# --- large folders -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_a_large_folder_comes_whole_and_in_order_in_stretches(models: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(folder_module, "STRETCH", 20)
    for number in range(95):
        (models / f"f{number}").touch()
    storage = FolderStorage(models)
    scans, scandir = [], os.scandir
    monkeypatch.setattr(folder_module.os, "scandir", lambda fd: (scans.append(fd), scandir(fd))[1])
    names, after = [], ""
    while after is not None:
        page = storage.page("", after, limit)
        assert 0 < len(page.entries) <= limit
        names += [entry.name for entry in page.entries]
        after = page.after  # type: ignore[assignment]
    assert names == sorted(file.name for file in models.iterdir())
    assert len(scans) == -(-97 // max(20, limit))


def test_listings_at_once_do_not_make_each_other_look_again(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "STRETCH", 20)
    for number in range(58):
        (models / f"f{number}").touch()
    storage = FolderStorage(models)
    scans, scandir = [], os.scandir
    monkeypatch.setattr(folder_module.os, "scandir", lambda fd: (scans.append(fd), scandir(fd))[1])
    after: dict[str, str | None] = {"slow": "", "fast": "", "org": ""}
    names: dict[str, list[str]] = {name: [] for name in after}
    for _ in range(60):
        for name, limit in (("slow", 2), ("fast", 9), ("org", 1)):
            if (where := after[name]) is not None:
                page = storage.page("org" if name == "org" else "", where, limit)
                names[name] += [entry.name for entry in page.entries]
                after[name] = page.after
    everything = sorted(file.name for file in models.iterdir())
    assert names == {"slow": everything, "fast": everything, "org": ["org/name"]}
    assert len(scans) <= 2 * 3 + 1


# --- attaching -----------------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_shown_is_refused_when_it_is_attached(tree: Inside, models: Path) -> None:
    with pytest.raises(TierUnavailable, match="cannot be opened"):
        tree.attach(models / "none", "/m")
    with pytest.raises(TierUnavailable):
        tree.attach(models / "é ü.bin", "/m")
    for url in ("relative/path", "file://host/path", f"{models}/../models", "", "nothing://x"):
        with pytest.raises(InvalidInput):
            tree.attach(url, "/m")
    for options in ({"read_only": False}, {"credentials": "me"}, {"options": {"a": "b"}}):
        with pytest.raises(InvalidInput):
            tree.attach(models, "/m", **options)
    with pytest.raises(InvalidInput, match="secret"):
        tree.attach("memory://x", "/m", options={"secret_key": "x"})
    assert tree.run(tree.services.attached.all()) == []


def test_attachments_exclude_each_other_and_what_is_published(tree: Inside, models: Path) -> None:
    made = tree.attach(models, "/m/public")
    assert tree.attach(models, "/m/public") == made
    with pytest.raises(AlreadyExists):
        tree.attach(models / "org", "/m/public")
    with pytest.raises(PathConflict):
        tree.attach(models, "/m/public/inner")
    with pytest.raises(PathConflict):
        tree.attach(models, "/m")


def test_a_detached_file_goes_on_for_who_has_it_open(tree: Inside, models: Path, soon: None) -> None:
    tree.attach(models, "/m")
    opened, origin = tree.open("/m/é ü.bin")
    assert tree.run(tree.services.attached.detach("/m")).url == str(models)
    with pytest.raises(NotFound):
        tree.look("/m/é ü.bin")
    with pytest.raises(NotFound):
        tree.look("/m")
    assert content_of(opened, origin) == b"unicode"


def test_what_one_node_attaches_shows_on_the_others_and_goes_there_too(tmp_path: Path, models: Path) -> None:
    for node in ("one", "two"):
        tiers = [{"name": "nvme", "kind": "posix", "path": tmp_path / node / "nvme"}]
        write_config(tmp_path / node, tiers=tiers, memory={"limit": "64MiB"}, catalog_url=f"sqlite:///{tmp_path / 'shared.sqlite3'}")
    with inside(tmp_path / "one") as here, inside(tmp_path / "two") as there:
        assert there.names("/") == []
        here.attach(models, "/m")
        assert until("it shows", lambda: _seen(there, "/m/é ü.bin")) == 7
        here.run(here.services.attached.detach("/m"))
        assert _seen(here, "/m/é ü.bin") is None
        until("it is gone", lambda: _seen(there, "/m/é ü.bin") is None)


def _seen(tree: Inside, path: str) -> int | None:
    try:
        return tree.look(path).size_bytes
    except NotFound:
        return None


def test_a_folder_that_went_away_is_unavailable_and_not_empty(tree: Inside, models: Path) -> None:
    tree.attach(models, "/m")
    models.rename(models.with_name("elsewhere"))
    for look in (lambda: tree.names("/m"), lambda: tree.look("/m/é ü.bin")):
        with pytest.raises(TierUnavailable, match="cannot be opened"):
            look()
    assert tree.look("/m").kind == "folder"
    models.with_name("elsewhere").rename(models)
    assert tree.names("/m") == ["org", "é ü.bin"]
