"""The catalog is lost after something was moved: what the tiers say gives the state after the move, or before it, and never a third."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_rebuild import NAMES, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def _settle(store: Store) -> None:
    for name in NAMES:
        store.settle(name)


def test_what_was_moved_is_at_its_new_path_with_its_bytes(store: Store) -> None:
    store.save("/run/1", {"a": b"one", "deep/er/b": b"two"})
    store.save("/run/2", {"a": b"three"})
    store.drain("pfs", "object")
    store.catalog.move("/run", "/kept/run")
    _settle(store)
    before = store.visible()
    report = store.rebuild()
    assert store.visible() == before == {"/kept/run/1": {"a": b"one", "deep/er/b": b"two"}, "/kept/run/2": {"a": b"three"}}
    assert (report.restored, report.superseded, report.incomplete, report.unreadable) == (2, 0, [], [])
    assert store.catalog.resolve("/kept/run/1").durability == NAMES


@pytest.mark.parametrize("heard", NAMES)
def test_one_tier_that_has_heard_of_the_move_is_enough_and_the_others_are_told(store: Store, heard: str) -> None:
    store.save("/run/1", {"a": b"one"})
    store.drain("pfs", "object")
    store.catalog.move("/run/1", "/kept")
    store.settle(heard)
    store.rebuild()
    assert store.visible() == {"/kept": {"a": b"one"}}
    assert store.catalog.resolve("/kept").durability == (heard,)
    _settle(store)
    assert store.catalog.resolve("/kept").durability == NAMES


def test_a_move_that_no_tier_has_heard_of_has_not_happened(store: Store) -> None:
    store.save("/run/1", {"a": b"one"})
    store.save("/old", {"a": b"old"})
    store.catalog.move("/run/1", "/old", replace=True)
    store.rebuild()
    assert store.visible() == {"/run/1": {"a": b"one"}, "/old": {"a": b"old"}}


def test_what_is_published_at_the_old_path_since_does_not_hide_what_was_moved(store: Store) -> None:
    store.save("/run/1", {"a": b"one"})
    store.catalog.move("/run/1", "/kept")
    _settle(store)
    store.save("/run/1", {"a": b"another"})
    store.drain("pfs")
    store.rebuild()
    assert store.visible() == {"/run/1": {"a": b"another"}, "/kept": {"a": b"one"}}


def test_what_was_moved_and_removed_does_not_come_back_at_either_path(store: Store) -> None:
    store.save("/run/1", {"a": b"one"})
    store.drain("pfs", "object")
    store.catalog.move("/run/1", "/kept")
    store.settle("nvme")  # two tiers still say where it was
    store.catalog.remove("/kept")
    store.work_off(1)
    store.rebuild()
    assert store.visible() == {}


def test_an_older_version_that_moved_along_does_not_appear_at_the_old_path(store: Store) -> None:
    store.save("/run/1", {"a": b"old"})
    store.drain("pfs", "object")
    store.save("/run/1", {"a": b"new"}, replace=True)
    store.catalog.move("/run/1", "/kept")
    _settle(store)
    report = store.rebuild()
    assert store.visible() == {"/kept": {"a": b"new"}}
    assert report.superseded == 1


def test_it_can_be_moved_again_after_a_rebuild_and_back(store: Store) -> None:
    store.save("/run/1", {"a": b"one"})
    store.catalog.move("/run/1", "/kept")
    _settle(store)
    store.rebuild()
    for path in ("/again", "/run/1"):
        store.catalog.move("/kept" if path == "/again" else "/again", path)
        _settle(store)
        store.rebuild()
        assert store.visible() == {path: {"a": b"one"}}
