"""A catalog that is lost gets its attachments back from the tiers: those that were there last, and none that was taken away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ckptstore
from ckptstore.attachments_record import ATTACHMENTS_KEY, read_attachments, write_attachments
from ckptstore.catalog.model import Attachment
from ckptstore.errors import InvalidInput, NotFound
from tests.daemon_process import DaemonProcess, run_rebuild, write_config
from tests.e2e.test_rebuild import Store
from tests.until import until

TIERS = ("nvme", "pfs")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    write_config(
        home,
        tiers=[
            {"name": "nvme", "kind": "posix", "path": tmp_path / "nvme"},
            {"name": "pfs", "kind": "posix", "path": tmp_path / "pfs", "shared": True},
        ],
    )
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return home


def lose_catalog(home: Path) -> None:
    for file in home.glob("catalog*"):
        file.unlink()


def said_in(tmp_path: Path, tier: str) -> list[str]:
    place = tmp_path / tier / ATTACHMENTS_KEY
    return [one.path for one in read_attachments(place.read_bytes(), subject="x").attachments] if place.exists() else []


def test_what_was_attached_is_shown_again_and_what_was_detached_is_not(home: Path, tmp_path: Path) -> None:
    with DaemonProcess(home), ckptstore.connect(home=home, start=False) as store:
        assert not any((tmp_path / tier / ATTACHMENTS_KEY).exists() for tier in TIERS)
        store.put(tmp_path / "three", "/own")
        for name in ("one", "two", "three"):
            store.attach(str(tmp_path / name), f"/models/{name}", refresh_s=7.5)
        store.detach("/models/three")
        before = store.attachments()
        assert [said_in(tmp_path, tier) for tier in TIERS] == [["/models/one", "/models/two"]] * 2
    lose_catalog(home)
    assert run_rebuild(home) == 0
    with DaemonProcess(home), ckptstore.connect(home=home, start=False) as store:
        assert store.attachments() == before
        assert [entry.path for entry in store.ls("/models")] == ["/models/one", "/models/two"]
        assert store.get("/models/two/file", tmp_path / "got").read_text() == "two"
        assert store.get("/own/file", tmp_path / "own").read_text() == "three"
        with pytest.raises(NotFound):
            store.stat("/models/three")
        store.detach("/models/one")
        store.detach("/models/two")
        assert [said_in(tmp_path, tier) for tier in TIERS] == [[]] * 2


def test_a_daemon_that_dies_before_the_tiers_hear_of_it_tells_them_when_it_is_back(home: Path, tmp_path: Path) -> None:
    with DaemonProcess(home, failpoints="attachments.before_write=kill@3") as daemon, ckptstore.connect(home=home, start=False) as store:
        store.attach(str(tmp_path / "one"), "/models/one")
        with pytest.raises(ckptstore.errors.CkptStoreError):
            store.detach("/models/one")
        assert daemon.wait_exit() == -9
    assert "/models/one" in [path for tier in TIERS for path in said_in(tmp_path, tier)]
    with DaemonProcess(home):
        until("every tier has heard of it", lambda: [said_in(tmp_path, tier) for tier in TIERS] == [[]] * 2)


def attachment(path: str) -> Attachment:
    return Attachment(path=path, url="s3://bucket/models", refresh_s=30.0, credentials="readers", options="{}", attached_at_s=1.5)


def test_the_tier_that_heard_last_counts_and_what_cannot_be_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    try:
        store.save("/taken/x", {"a": b"1"})
        old, new = [attachment("/gone")], [attachment("/models"), attachment("/taken"), attachment("no path")]
        store.tiers["nvme"].put_document(ATTACHMENTS_KEY, write_attachments(store.catalog.store_id, 90, new))
        store.tiers["pfs"].put_document(ATTACHMENTS_KEY, write_attachments(store.catalog.store_id, 50, old))
        store.tiers["object"].put_document(ATTACHMENTS_KEY, b"{}")
        report = store.rebuild()
        assert (report.attached, report.unreadable) == (1, [])
        assert [line.partition(":")[0] for line in report.not_attached] == ["object", "s3", "s3"]
        assert store.catalog.attachments() == [attachment("/models")]
        sequence, _ = store.catalog.attachments_now()
        assert sequence >= 90  # what is written from now on counts
        assert set(store.visible()) == {"/taken/x"}
        store.tiers["nvme"].put_document(ATTACHMENTS_KEY, write_attachments("another store", 99, [attachment("/theirs")]))
        store.rebuild()
        assert [one.path for one in store.catalog.attachments()] == ["/gone"]
    finally:
        store.close()


def test_a_document_of_another_form_is_refused() -> None:
    good = json.loads(write_attachments("store", 3, [attachment("/a")]))
    assert read_attachments(json.dumps(good).encode(), subject="x").attachments == (attachment("/a"),)
    for wrong in (b"", b"[]", json.dumps(good | {"version": 2}).encode(), json.dumps(good | {"secret": "x"}).encode()):
        with pytest.raises(InvalidInput):
            read_attachments(wrong, subject="x")
