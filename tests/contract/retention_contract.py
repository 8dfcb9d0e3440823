"""What every catalog must do about what is kept, what is held, and what was thrown away."""

from __future__ import annotations

import pytest

from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Kind, Publication, Retention
from ckptstore.errors import AlreadyExists, InvalidInput, NotFound
from ckptstore.retention import LatestN, write_policies
from tests.contract.catalog_contract import Saver
from tests.until import until

POLICIES = write_policies([LatestN(n=2)])


def safe(saver: Saver, path: str) -> Publication:
    """A checkpoint that all tiers hold."""
    saver.save(path)
    saver.settle_all()
    return saver.catalog.resolve(path)


class RetentionContract:
    def test_a_folders_policies_are_kept_until_they_are_cleared(self, catalog: Catalog) -> None:
        kept = catalog.set_retention(Retention("/run", POLICIES, trash_s=60.0))
        assert (kept.path, kept.policies, kept.tier, kept.trash_s) == ("/run", POLICIES, "", 60.0)
        assert kept.set_at_s > 0
        other = catalog.set_retention(Retention("/run", write_policies([LatestN(n=5)])))
        assert catalog.retentions() == [other]
        near = catalog.set_retention(Retention("/run", POLICIES, tier="nvme", safe_in="pfs"))
        catalog.set_retention(Retention("/run-2", POLICIES, tier="pfs"))
        assert (near.tier, near.safe_in) == ("nvme", "pfs")
        assert catalog.retentions("/run") == [other, near]
        assert catalog.clear_retention("/run", "nvme") == [near]
        assert catalog.clear_retention("/run") == [other]
        assert [kept.path for kept in catalog.retentions()] == ["/run-2"]
        with pytest.raises(NotFound):
            catalog.clear_retention("/run")
        for wrong in (Retention("/run", POLICIES, tier="nowhere"), Retention("/run", POLICIES, safe_in="nowhere")):
            with pytest.raises(InvalidInput, match="nowhere"):
                catalog.set_retention(wrong)

    def test_the_checkpoints_of_a_folder_come_oldest_first_and_nothing_else_does(self, saver: Saver, catalog: Catalog) -> None:
        for path in ("/run/b", "/run/a", "/run/deep/c", "/run-2/d"):
            saver.save(path)
        saver.save("/run/file", kind=Kind.FILE)
        assert [publication.path for publication in catalog.checkpoints("/run")] == ["/run/b", "/run/a"]

    def test_what_is_thrown_away_is_seen_nowhere_and_can_be_had_back(self, saver: Saver, catalog: Catalog) -> None:
        old, new = safe(saver, "/run/1"), safe(saver, "/run/2")
        place = catalog.discard(old.publication_id, because_of=new.publication_id, tier="", trash_s=60.0)
        assert place is not None
        assert place.endswith("/run/1")
        with pytest.raises(NotFound):
            catalog.resolve("/run/1")
        assert [entry.path for entry in catalog.list_folder("/")] == ["/run"]
        assert catalog.resolve("/run/@latest").path == "/run/2"
        (lying,) = catalog.trashed()
        assert (lying.path, lying.publication.publication_id) == ("/run/1", old.publication_id)
        assert catalog.empty_trash() == []
        assert catalog.undo("/run/1") == "/run/1"
        assert catalog.resolve("/run/1").publication_id == old.publication_id
        assert catalog.trashed() == []
        with pytest.raises(NotFound):
            catalog.undo("/run/1")

    def test_what_waited_long_enough_goes_for_good(self, saver: Saver, catalog: Catalog) -> None:
        old, new = safe(saver, "/run/1"), safe(saver, "/run/2")
        catalog.discard(old.publication_id, because_of=new.publication_id, tier="", trash_s=60.0)
        assert [publication.publication_id for publication in catalog.empty_trash(all_of_it=True)] == [old.publication_id]
        assert catalog.trashed() == []
        assert not catalog.publication(old.publication_id).live

    def test_what_is_due_goes_by_itself_and_what_may_still_be_wanted_stays(self, saver: Saver, catalog: Catalog) -> None:
        due, lying, new = (safe(saver, f"/run/{number}") for number in (1, 2, 3))
        catalog.discard(due.publication_id, because_of=new.publication_id, tier="", trash_s=0.001)
        catalog.discard(lying.publication_id, because_of=new.publication_id, tier="", trash_s=600.0)
        until_s = {one.path: one.until_s for one in catalog.trashed()}["/run/1"]
        until("the database's clock says that it is due", lambda: catalog.clock_s() >= until_s)
        assert [publication.publication_id for publication in catalog.empty_trash()] == [due.publication_id]
        assert [one.path for one in catalog.trashed()] == ["/run/2"]

    def test_nothing_goes_before_the_tier_that_was_chosen_holds_something_newer(self, saver: Saver, catalog: Catalog) -> None:
        old = safe(saver, "/run/1")
        new = saver.save("/run/2")
        saver.settle("nvme")

        def goes(safe_in: str) -> bool:
            return catalog.discard(old.publication_id, because_of=new.publication_id, tier=safe_in, trash_s=0.0) is not None

        assert not goes("pfs"), "the newer one is in nvme alone"
        assert not goes(""), "nor does the deepest tier have it"
        saver.drain("pfs")
        saver.settle("pfs")
        assert not goes("object")
        assert goes("pfs")
        assert not catalog.publication(old.publication_id).live

    def test_without_a_trash_it_is_removed_at_once(self, saver: Saver, catalog: Catalog) -> None:
        old, new = safe(saver, "/run/1"), safe(saver, "/run/2")
        assert catalog.discard(old.publication_id, because_of=new.publication_id, tier="", trash_s=0.0) == ""
        assert not catalog.publication(old.publication_id).live
        assert catalog.trashed() == []

    def test_the_same_path_may_be_thrown_away_twice_in_a_second(self, saver: Saver, catalog: Catalog) -> None:
        first, new = safe(saver, "/run/1"), safe(saver, "/run/9")
        catalog.discard(first.publication_id, because_of=new.publication_id, tier="", trash_s=60.0)
        second, newest = safe(saver, "/run/1"), safe(saver, "/run/10")
        catalog.discard(second.publication_id, because_of=newest.publication_id, tier="", trash_s=60.0)
        assert len(catalog.trashed()) == 2
        catalog.undo("/run/1")
        assert catalog.resolve("/run/1").publication_id == second.publication_id
        with pytest.raises(AlreadyExists):
            catalog.undo("/run/1")

    def test_nothing_goes_unless_a_newer_one_beside_it_is_safe(self, saver: Saver, catalog: Catalog) -> None:
        old, elsewhere = safe(saver, "/run/1"), safe(saver, "/other/2")
        newer = saver.save("/run/2")
        older = old.publication_id

        def discard(which: str, because_of: str) -> str | None:
            return catalog.discard(which, because_of=because_of, tier="", trash_s=60.0)

        assert discard(older, newer.publication_id) is None, "the newer one is not in the deepest tier"
        assert discard(older, elsewhere.publication_id) is None, "it is in another folder"
        assert discard(older, older) is None, "it is the same"
        saver.settle_all()
        assert discard(newer.publication_id, older) is None, "it is older"
        catalog.remove("/run/2")
        assert discard(older, newer.publication_id) is None, "it is gone"
        assert catalog.resolve("/run/1").publication_id == older

    def test_what_is_held_is_neither_removed_nor_replaced_nor_thrown_away(self, saver: Saver, catalog: Catalog) -> None:
        old, new = safe(saver, "/run/1"), safe(saver, "/run/2")
        held = catalog.hold("/run/1", "the paper's")
        assert catalog.hold("/run/1", "the paper's figure 2").why == "the paper's figure 2"
        assert [hold.path for hold in catalog.holds()] == [held.path]
        for refused in (
            lambda: catalog.remove("/run/1"),
            lambda: catalog.remove("/run", recursive=True),
            lambda: saver.save("/run/1", replace=True),
        ):
            with pytest.raises(AlreadyExists, match="figure 2"):
                refused()
        assert catalog.discard(old.publication_id, because_of=new.publication_id, tier="", trash_s=60.0) is None
        catalog.move("/run/1", "/kept/1")
        assert [hold.path for hold in catalog.holds()] == ["/kept/1"]
        catalog.release("/kept/1")
        with pytest.raises(NotFound):
            catalog.release("/kept/1")
        catalog.remove("/kept/1")

    def test_a_folder_written_file_by_file_is_a_checkpoint_once_its_metadata_is_there(self, saver: Saver, catalog: Catalog) -> None:
        def write(folder: str, *names: str) -> None:
            for name in names:
                saver.save(f"{folder}/{name}", kind=Kind.FILE)

        write("/run/1", "__0_0.distcp", "__1_0.distcp")
        assert list(catalog.checkpoints("/run")) == []
        write("/run/1", ".metadata")
        safe(saver, "/run/2")
        write("/run/3", "__0_0.distcp", ".metadata", "__1_0.distcp")  # it is being written again
        (first, second) = catalog.checkpoints("/run")
        assert (first.path, first.kind, first.size_bytes, first.file_count) == ("/run/1", Kind.FOLDER, 30, 3)
        assert first.durability == ("nvme", "pfs", "object")
        catalog.hold("/run/1/__0_0.distcp", "mine")
        assert catalog.discard(first.publication_id, because_of=second.publication_id, tier="", trash_s=60.0) is None
        catalog.release("/run/1/__0_0.distcp")
        write("/run/1", "__2_0.distcp")
        assert catalog.discard(first.publication_id, because_of=second.publication_id, tier="", trash_s=60.0) is None
        catalog.remove("/run/1/__2_0.distcp")

        place = catalog.discard(first.publication_id, because_of=second.publication_id, tier="", trash_s=60.0)
        assert place is not None
        assert [found.path for found in catalog.checkpoints("/run")] == ["/run/2"]
        assert [(lying.path, lying.publication.file_count) for lying in catalog.trashed()] == [("/run/1", 3)]
        assert catalog.undo("/run/1") == "/run/1"
        assert [found.path for found in catalog.checkpoints("/run")] == ["/run/1", "/run/2"]
        assert [hold.path for hold in catalog.holds()] == ["/run/1/.metadata"]
        catalog.release("/run/1/.metadata")
        assert not catalog.leave_tier(first.publication_id, "nvme", wanted_in=["pfs"], because_of=(second.publication_id, "nvme"))
        assert catalog.discard(first.publication_id, because_of=second.publication_id, tier="", trash_s=0.0) == ""
        assert catalog.trashed() == []
        assert [entry.path for entry in catalog.list_folder("/run")] == ["/run/2", "/run/3"]

    def test_what_is_saved_goes_once_a_newer_one_written_file_by_file_is_safe(self, saver: Saver, catalog: Catalog) -> None:
        old = safe(saver, "/run/1")
        saver.save("/run/2/__0_0.distcp", kind=Kind.FILE)
        saver.settle_all()
        saver.save("/run/2/.metadata", kind=Kind.FILE)
        (_, new) = catalog.checkpoints("/run")
        assert new.durability == ()
        assert catalog.discard(old.publication_id, because_of=new.publication_id, tier="", trash_s=0.0) is None
        saver.settle_all()
        assert catalog.discard(old.publication_id, because_of=new.publication_id, tier="", trash_s=0.0) == ""
        assert catalog.resolve("/run/@latest").path == "/run/2"

    def test_users_cannot_name_what_lies_in_the_trash(self, saver: Saver, catalog: Catalog) -> None:
        old, new = safe(saver, "/run/1"), safe(saver, "/run/2")
        place = catalog.discard(old.publication_id, because_of=new.publication_id, tier="", trash_s=60.0)
        assert place is not None
        for act in (catalog.resolve, catalog.remove, catalog.entry, catalog.list_folder, lambda path: catalog.move(path, "/b")):
            with pytest.raises(InvalidInput, match="reserved"):
                act(place)
        with pytest.raises(InvalidInput, match="reserved"):
            catalog.move("/run/2", "/@trash/000000000001/run/2")
