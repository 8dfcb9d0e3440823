"""The catalog is deleted and made again from real tiers: what was published is back, what was deleted is not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Act, Join, Kind, Publication, TierRow, record_key
from ckptstore.config import Settings, TierSettings
from ckptstore.errors import InvalidInput, NotFound, TierUnavailable, WrongStore
from ckptstore.paths import new_id
from ckptstore_server.identity import STORE_KEY, claim_root
from ckptstore_server.rebuild import RebuildReport, rebuild, sweep_unknown
from ckptstore_tiers.open_tiers import open_tier
from ckptstore_tiers.posix import PosixTier
from ckptstore_tiers.sources import MemorySource

NAMES = ("nvme", "pfs", "object")


def _place(order: list[str], key: str) -> int:
    return order.index(key) if key in order else len(order)


class Store:
    """A home with three posix tiers, worked as a daemon works it, one step at a time."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.settings = Settings(
            home=home, tiers=tuple(TierSettings(name=name, kind="posix", path=home / name, shared=name != "nvme") for name in NAMES)
        )
        self.tiers = {tier.name: open_tier(tier, home) for tier in self.settings.tiers}
        self.catalog = self._open("node-a")
        self.catalog.register_tiers([TierRow(name, i, name != "nvme", True) for i, name in enumerate(NAMES)])
        for tier in self.tiers.values():
            claim_root(tier, self.catalog.store_id)

    def _open(self, node: str) -> Catalog:
        return Catalog.open(f"sqlite:///{self.home / 'catalog.sqlite3'}", node=node)

    def close(self) -> None:
        self.catalog.close()
        for tier in self.tiers.values():
            tier.close()

    def save(self, path: str, files: dict[str, bytes], *, replace: bool = False, publish: bool = True) -> Publication | None:
        catalog = self.catalog
        ticket = catalog.join(Join(path, new_id(), 0, 0, 1, Kind.FOLDER, catalog.node, "session", replace), list(files))
        catalog.snapshot_taken(ticket.attempt_id, 0)
        for item in ticket.objects:
            digests = self.tiers["nvme"].put(item.key, MemorySource(memoryview(files[item.name]), stable=True))
            assert catalog.object_stored(item.object_id, digests, tier="nvme")
        if not publish:
            return None
        catalog.rank_stored(ticket.attempt_id, 0)
        published = catalog.publish(ticket.attempt_id)
        self.settle("nvme")
        return published

    def settle(self, tier: str) -> None:
        for publication_id in self.catalog.owed_records(tier, limit=1000):
            self.tiers[tier].put_document(record_key(publication_id), self.catalog.record(publication_id, tier=tier))
            self.catalog.record_written(publication_id, tier)

    def drain(self, *tiers: str) -> None:
        for tier in tiers:
            while due := self.catalog.pending_drains(tier, limit=100):
                for item in due:
                    source = next(name for name in NAMES if name != tier and self._holds(name, item.key))
                    data = self.read(source, item.key)
                    self.tiers[tier].put(item.key, MemorySource(memoryview(data), stable=True))
                    assert self.catalog.add_replica(item.object_id, tier)
            self.settle(tier)

    def work_off(self, steps: int = 10**6) -> int:
        done = 0
        while chores := [chore for name in NAMES for chore in self.catalog.chores(name, grace_s=0.0, limit=1)]:
            for chore in chores:
                if done == steps:
                    return done
                if chore.act is Act.WRITE_TOMBSTONE:
                    self.tiers[chore.tier].put_document(chore.key, chore.document)
                else:
                    self.tiers[chore.tier].delete(chore.key)
                self.catalog.chore_done(chore)
                done += 1
        return done

    def lose_catalog(self, node: str = "node-a") -> None:
        self.catalog.close()
        for file in self.home.glob("catalog.sqlite3*"):
            file.unlink()
        self.catalog = self._open(node)

    def rebuild(self, *, node: str = "node-a", without: tuple[str, ...] = (), allow: tuple[str, ...] = ()) -> RebuildReport:
        self.lose_catalog(node)
        open_tiers = {name: tier for name, tier in self.tiers.items() if name not in without}
        return rebuild(self.settings, open_tiers, self.catalog, allow_missing=allow)

    def visible(self, folder: str = "/") -> dict[str, dict[str, bytes]]:
        """Path → files, their bytes read from the first tier that is said to hold them."""
        found: dict[str, dict[str, bytes]] = {}
        for entry in self.catalog.list_folder(folder):
            if entry.publication is None:
                found |= self.visible(entry.path)
                continue
            files = self.catalog.files(entry.publication.publication_id)
            found[entry.path] = {f.name: self.read(self.catalog.replicas(f.object_id)[0].tier, f.key) for f in files}
        return found

    def _holds(self, tier: str, key: str) -> bool:
        try:
            self.tiers[tier].stat(key)
        except NotFound:
            return False
        return True

    def read(self, tier: str, key: str) -> bytes:
        reader = self.tiers[tier].open(key)
        try:
            data = bytearray(reader.size_bytes)
            reader.read_into(0, memoryview(data))
            return bytes(data)
        finally:
            reader.close()

    def keys(self, tier: str) -> set[str]:
        return {stat.key for prefix in ("objects/", "records/", "tombstones/") for stat in self.tiers[tier].list(prefix)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def test_everything_published_is_back_with_its_bytes_its_order_and_its_durability(store: Store) -> None:
    store.save("/run/1", {"a": b"one", "deep/er/b": b"two"})
    store.save("/run/2", {"a": b""})
    store.drain("pfs", "object")
    store.save("/run/3", {"a": b"three"})
    before = store.visible()
    publications = [store.catalog.resolve(f"/run/{i}") for i in (1, 2, 3)]
    report = store.rebuild()
    assert (report.restored, report.incomplete, report.unreadable, report.unknown_objects) == (3, [], [], 0)
    assert store.visible() == before
    assert [store.catalog.resolve(f"/run/{i}") for i in (1, 2, 3)] == publications
    assert [entry.name for entry in store.catalog.list_folder("/run/1/deep/er")] == ["b"]


def test_drains_go_on_after_a_rebuild_and_new_versions_come_after_the_old(store: Store) -> None:
    old = store.save("/run/1", {"a": b"one"})
    assert old is not None
    store.rebuild()
    store.drain("pfs", "object")
    assert store.catalog.resolve("/run/1").durability == NAMES
    new = store.save("/run/1", {"a": b"newer"}, replace=True)
    assert new is not None
    assert (new.sequence > old.sequence, new.opened > old.opened) == (True, True)
    store.drain("pfs", "object")
    store.work_off()
    assert store.visible() == {"/run/1": {"a": b"newer"}}
    assert all(len(store.keys(name)) == 2 for name in NAMES)


def test_what_was_evicted_is_not_copied_up_again(store: Store) -> None:
    published = store.save("/run/1", {"a": b"one"})
    assert published is not None
    store.drain("pfs", "object")
    (file,) = store.catalog.files(published.publication_id)
    for name in ("nvme", "pfs"):
        assert store.catalog.drop_replica(file.object_id, name)
        store.tiers[name].delete(file.key)
    store.rebuild()
    assert store.catalog.resolve("/run/1").durability == ("object",)
    assert [store.catalog.pending_drains(name, limit=10) for name in NAMES] == [[], [], []]
    assert [store.catalog.owed_records(name, limit=10) for name in NAMES] == [[], [], []]


# Two files in three tiers: a tombstone, a record, two objects and the tombstone's removal in each make fifteen steps.
@pytest.mark.parametrize("steps", range(1, 15))
def test_what_was_removed_does_not_come_back_whatever_step_the_deletion_had_reached(store: Store, steps: int) -> None:
    store.save("/run/1", {"a": b"one", "b": b"two"})
    store.save("/run/2", {"a": b"stays"})
    store.drain("pfs", "object")
    store.catalog.remove("/run/1")
    assert store.work_off(steps) == steps
    report = store.rebuild()
    assert store.visible() == {"/run/2": {"a": b"stays"}}
    store.work_off()
    # Objects whose record was deleted already in every tier that had them are in no record: known to be unknown, and left alone.
    leftovers = report.unknown_objects
    assert sum(len(store.keys(name)) for name in NAMES) == 2 * 3 + leftovers
    report = store.rebuild()
    assert store.visible() == {"/run/2": {"a": b"stays"}}
    assert sweep_unknown(store.tiers, store.catalog, report, before_s=time.time() + 60) == leftovers
    assert all(len(store.keys(name)) == 2 for name in NAMES)


def test_a_tier_that_was_away_during_the_removal_does_not_bring_it_back(store: Store) -> None:
    store.save("/run/1", {"a": b"one"})
    store.drain("pfs", "object")
    store.catalog.remove("/run/1")
    for name in ("nvme", "pfs"):  # the object store does not answer
        while chores := store.catalog.chores(name, grace_s=0.0, limit=10):
            for chore in chores:
                if chore.act is Act.WRITE_TOMBSTONE:
                    store.tiers[name].put_document(chore.key, chore.document)
                else:
                    store.tiers[name].delete(chore.key)
                store.catalog.chore_done(chore)
    store.rebuild()
    assert store.visible() == {}
    store.work_off()
    assert all(store.keys(name) == set() for name in NAMES)


@pytest.mark.parametrize("newest_first", [False, True])
def test_of_two_versions_the_later_is_back_and_the_earlier_goes_when_it_may(
    store: Store, newest_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = store.save("/run/1", {"a": b"old"})
    store.drain("pfs", "object")
    new = store.save("/run/1", {"a": b"new"}, replace=True)
    assert old is not None
    assert new is not None
    # Ids are random, and so is the order in which a tier lists them.
    order = [record_key(version.publication_id) for version in ((new, old) if newest_first else (old, new))]
    listed = PosixTier.list
    monkeypatch.setattr(PosixTier, "list", lambda tier, prefix: iter(sorted(listed(tier, prefix), key=lambda s: _place(order, s.key))))
    report = store.rebuild()
    assert (report.restored, report.superseded) == (1, 1)
    assert store.visible() == {"/run/1": {"a": b"new"}}
    store.work_off()
    assert len(store.keys("object")) == 2
    store.drain("pfs", "object")
    store.work_off()
    assert store.visible() == {"/run/1": {"a": b"new"}}
    assert all(len(store.keys(name)) == 2 for name in NAMES)


def test_a_replaced_version_is_back_when_the_new_one_was_lost_with_its_tier(store: Store) -> None:
    store.save("/run/1", {"a": b"old"})
    store.drain("pfs", "object")
    new = store.save("/run/1", {"a": b"new"}, replace=True)
    assert new is not None
    (file,) = store.catalog.files(new.publication_id)
    store.tiers["nvme"].delete(file.key)
    report = store.rebuild()
    assert [(item.path, item.publication_id) for item in report.incomplete] == [("/run/1", new.publication_id)]
    assert store.visible() == {"/run/1": {"a": b"old"}}
    saved = store.save("/run/1", {"a": b"newest"}, replace=True)
    assert saved is not None
    assert saved.sequence > new.sequence


def test_a_replaced_version_that_was_deleted_does_not_come_back(store: Store) -> None:
    store.save("/run/1", {"a": b"old"})
    store.drain("pfs", "object")
    store.save("/run/1", {"a": b"new"}, replace=True)
    store.drain("pfs", "object")
    store.work_off(2)
    store.rebuild()
    store.work_off()
    assert store.visible() == {"/run/1": {"a": b"new"}}
    assert all(len(store.keys(name)) == 2 for name in NAMES)


def test_a_path_that_became_a_folder_is_the_folder(store: Store) -> None:
    store.save("/run", {"a": b"removed before the folder was made"})
    store.catalog.remove("/run")
    store.save("/run/1", {"a": b"later"})
    store.rebuild()
    assert store.visible() == {"/run/1": {"a": b"later"}}
    store.work_off()
    assert len(store.keys("nvme")) == 2


def test_a_half_published_attempt_does_not_come_back_and_its_bytes_are_left_alone(store: Store) -> None:
    store.save("/run/1", {"a": b"whole"})
    store.save("/run/2", {"a": b"half"}, publish=False)
    report = store.rebuild()
    assert store.visible() == {"/run/1": {"a": b"whole"}}
    assert (report.unknown_objects, report.unknown_bytes) == (1, 4)
    assert "objects/run/2/a~" in report.unknown_samples[0]
    store.work_off()
    assert len(store.keys("nvme")) == 3
    assert sweep_unknown(store.tiers, store.catalog, report, before_s=time.time() - 3600) == 0
    assert sweep_unknown(store.tiers, store.catalog, report, before_s=time.time() + 3600) == 1
    assert store.visible() == {"/run/1": {"a": b"whole"}}


def test_an_incomplete_checkpoint_is_skipped_reported_and_not_swept(store: Store) -> None:
    published = store.save("/run/1", {"a": b"one", "b": b"two"})
    assert published is not None
    first, _ = store.catalog.files(published.publication_id)
    store.tiers["nvme"].delete(first.key)
    report = store.rebuild()
    assert store.visible() == {}
    assert [item.why for item in report.incomplete] == ["1 of its files are in no tier ('a')"]
    assert report.unknown_objects == 0
    assert sweep_unknown(store.tiers, store.catalog, report, before_s=time.time() + 3600) == 0
    assert len(store.keys("nvme")) == 2


def test_a_file_that_was_cut_short_counts_as_lost_there(store: Store) -> None:
    published = store.save("/run/1", {"a": b"one"})
    assert published is not None
    store.drain("pfs")
    (file,) = store.catalog.files(published.publication_id)
    (store.home / "nvme" / file.key).write_bytes(b"on")
    store.rebuild()
    assert {replica.tier for replica in store.catalog.replicas(file.object_id)} == {"pfs"}


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_record_is_reported_and_another_tiers_record_is_used(store: Store, damage: str) -> None:
    published = store.save("/run/1", {"a": b"one"})
    assert published is not None
    store.drain("pfs")
    key = record_key(published.publication_id)
    good = store.tiers["nvme"].get_document(key)
    bad = {"cut": good[:-20], "flipped": good.replace(b'"size":3', b'"size":4'), "empty": b""}[damage]
    store.tiers["nvme"].put_document(key, bad)
    report = store.rebuild()
    assert [line.split(": ")[:2] for line in report.unreadable] == [["nvme", key]]
    assert store.visible() == {"/run/1": {"a": b"one"}}
    assert store.catalog.owed_records("nvme", limit=10) == [published.publication_id]
    with pytest.raises(InvalidInput, match="not all records were read"):
        sweep_unknown(store.tiers, store.catalog, report, before_s=time.time())


def test_a_home_with_a_new_node_id_owns_what_lies_in_its_tier(store: Store) -> None:
    store.save("/run/1", {"a": b"one"})
    store.rebuild(node="node-new")
    assert store.catalog.resolve("/run/1").durability == ("nvme",)
    store.drain("pfs", "object")
    assert store.catalog.resolve("/run/1").durability == NAMES


def test_a_tier_that_is_away_stops_the_rebuild_unless_it_is_let_go(store: Store) -> None:
    store.save("/run/1", {"a": b"one"})
    store.drain("pfs", "object")
    with pytest.raises(TierUnavailable, match="allow-missing object"):
        store.rebuild(without=("object",))
    assert store.catalog.is_empty()
    report = store.rebuild(without=("object",), allow=("object",))
    assert report.missing_tiers == ["object"]
    assert store.catalog.resolve("/run/1").durability == ("nvme", "pfs")
    store.drain("object")
    assert store.catalog.resolve("/run/1").durability == NAMES


def test_only_an_empty_catalog_is_rebuilt(store: Store) -> None:
    store.save("/run/1", {"a": b"one"})
    with pytest.raises(WrongStore, match="not empty"):
        rebuild(store.settings, store.tiers, store.catalog)
    assert store.visible() == {"/run/1": {"a": b"one"}}


def test_roots_of_different_stores_are_not_rebuilt_into_one(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    store.lose_catalog()
    with pytest.raises(WrongStore, match="different stores"):
        rebuild(store.settings, store.tiers | {"pfs": other.tiers["pfs"]}, store.catalog)
    other.close()


def test_a_new_catalog_over_an_old_root_is_refused_and_says_what_to_do(store: Store) -> None:
    old = store.catalog.store_id
    store.save("/run/1", {"a": b"one"})
    store.lose_catalog()
    with pytest.raises(WrongStore, match="ckptstore catalog rebuild") as refusal:
        claim_root(store.tiers["nvme"], store.catalog.store_id)
    assert old in str(refusal.value)
    assert store.catalog.store_id in str(refusal.value)
    assert refusal.value.tier == "nvme"


def test_a_root_with_data_and_without_identity_is_refused(store: Store) -> None:
    store.save("/run/1", {"a": b"one"})
    store.tiers["nvme"].delete(STORE_KEY)
    (store.home / "nvme" / STORE_KEY).unlink(missing_ok=True)
    with pytest.raises(WrongStore, match="not empty"):
        claim_root(store.tiers["nvme"], store.catalog.store_id)


def test_an_interrupted_rebuild_takes_no_daemon_and_is_run_again(store: Store) -> None:
    store.save("/run/1", {"a": b"one"})
    store_id = store.catalog.store_id
    store.lose_catalog()
    rows = [TierRow(name, i, name != "nvme", True) for i, name in enumerate(NAMES)]
    store.catalog.begin_restore(store_id, rows)
    assert not store.catalog.is_empty()
    with pytest.raises(WrongStore, match="interrupted"):
        store.catalog.register_tiers(rows)
    report = rebuild(store.settings, store.tiers, store.catalog)
    assert report.restored == 1
    store.catalog.register_tiers(rows)
    assert store.visible() == {"/run/1": {"a": b"one"}}
