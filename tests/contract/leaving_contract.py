"""What every catalog must do when a checkpoint is kept from a tier, leaves it, or comes back into it."""

from __future__ import annotations

from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Act, Publication
from tests.contract.catalog_contract import DIGESTS, Saver
from tests.contract.retention_contract import safe


def tiers_of(saver: Saver, published: Publication) -> list[str]:
    """Where replicas of its first object lie."""
    return [replica.tier for replica in saver.catalog.replicas(saver.object_of(published))]


def leave(saver: Saver, leaving: Publication, tier: str, newer: Publication, *wanted_in: str, safe_in: str | None = None) -> bool:
    because_of = (newer.publication_id, safe_in or tier)
    return saver.catalog.leave_tier(leaving.publication_id, tier, wanted_in=wanted_in, because_of=because_of)


class LeavingContract:
    def test_what_skips_a_tier_is_not_drained_there_and_owes_nothing(self, saver: Saver, catalog: Catalog) -> None:
        ticket = saver.join("/run/1")
        saver.store(ticket)
        published = catalog.publish(ticket.attempt_id, skips=["nvme", "object"])
        assert catalog.unkept([published.publication_id]) == {published.publication_id: {"object"}}, "in nvme it lies already"
        saver.settle_all()
        assert catalog.resolve("/run/1").durability == ("nvme", "pfs")
        assert tiers_of(saver, published) == ["nvme", "pfs"]
        assert not catalog.is_wanted_in(saver.object_of(published), "object")
        assert not catalog.add_replica(saver.object_of(published), "object"), "a copy that was under way is not taken"
        assert [chore.act for chore in saver.work_off("object")] == [Act.DELETE_OBJECT]

    def test_what_leaves_a_tier_takes_its_replicas_drains_and_record_along(self, saver: Saver, catalog: Catalog) -> None:
        old, new = safe(saver, "/run/1"), safe(saver, "/run/2")
        assert leave(saver, old, "object", new, "nvme")
        assert catalog.resolve("/run/1").durability == ("nvme", "pfs")
        assert tiers_of(saver, old) == ["nvme", "pfs"]
        assert {chore.act for chore in saver.work_off("object")} == {Act.DELETE_RECORD, Act.DELETE_OBJECT}
        catalog.mark_damaged(saver.object_of(old), "object")
        saver.settle_all()
        assert catalog.resolve("/run/1").durability == ("nvme", "pfs"), "nothing brings it back"
        catalog.remove("/run/1")
        saver.work_off()
        assert saver.catalog.count()["deleted"] == 0

    def test_nothing_leaves_the_last_tier_that_will_do(self, saver: Saver, catalog: Catalog) -> None:
        old, new = saver.save("/run/1"), saver.save("/run/2")
        saver.settle("nvme")
        assert not leave(saver, old, "nvme", new, "object"), "nothing else holds it"
        saver.settle_all()
        assert not leave(saver, old, "object", new), "a nearer tier will do only if it wants it"
        assert leave(saver, old, "nvme", new, "object")
        assert not leave(saver, old, "object", new, "nvme"), "it has left that"
        assert leave(saver, old, "pfs", new, "object")
        assert tiers_of(saver, old) == ["object"]

    def test_nothing_leaves_while_it_is_held_or_nothing_newer_is_safe(self, saver: Saver, catalog: Catalog) -> None:
        old, elsewhere = safe(saver, "/run/1"), safe(saver, "/other/3")
        new = saver.save("/run/2")
        assert not leave(saver, old, "nvme", elsewhere, safe_in="nvme")
        assert not leave(saver, old, "nvme", new), "its record is not written"
        assert not catalog.leave_tier(old.publication_id, "nvme", wanted_in=["object"], because_of=None)
        saver.settle_all()
        catalog.hold("/run/1", "the paper's")
        assert not leave(saver, old, "nvme", new)
        catalog.release("/run/1")
        assert not leave(saver, new, "nvme", old), "it is older"
        assert leave(saver, old, "nvme", new)

    def test_what_others_need_in_a_tier_stays_there(self, saver: Saver, catalog: Catalog) -> None:
        base = safe(saver, "/run/1")
        user = saver.save_referring("/run/2", base)
        saver.settle_all()
        newest = safe(saver, "/run/3")
        assert leave(saver, base, "nvme", newest)
        assert tiers_of(saver, base) == ["nvme", "object", "pfs"]
        assert catalog.resolve("/run/1").durability == ("pfs", "object")
        assert catalog.resolve("/run/2").durability == ("nvme", "pfs", "object")
        assert leave(saver, user, "nvme", newest)
        assert tiers_of(saver, base) == ["object", "pfs"], "the last who needed it has left, too"
        assert catalog.resolve("/run/2").durability == ("pfs", "object")

    def test_what_is_needed_only_by_those_that_are_kept_from_a_tier_leaves_it(self, saver: Saver, catalog: Catalog) -> None:
        base = safe(saver, "/run/1")
        user = saver.save_referring("/run/2", base)
        newest = safe(saver, "/run/3")
        assert leave(saver, user, "object", newest, "nvme")
        assert "object" in tiers_of(saver, base)
        catalog.remove("/run/1")
        assert tiers_of(saver, base) == ["nvme", "pfs"]
        saver.work_off()
        assert catalog.resolve("/run/2").durability == ("nvme", "pfs")
        ticket = saver.join("/run/4")
        saver.refer(ticket, user)
        assert leave(saver, user, "pfs", newest, "nvme")
        assert "pfs" in tiers_of(saver, user)
        catalog.abort(ticket.attempt_id, "enough")
        assert tiers_of(saver, user) == ["nvme"]
        assert catalog.resolve("/run/2").durability == ("nvme",)

    def test_what_an_attempt_refers_to_stays(self, saver: Saver, catalog: Catalog) -> None:
        base, newest = safe(saver, "/run/1"), safe(saver, "/run/3")
        ticket = saver.join("/run/4")
        saver.refer(ticket, base)
        assert leave(saver, base, "nvme", newest)
        assert "nvme" in tiers_of(saver, base)
        saver.store(ticket)
        catalog.publish(ticket.attempt_id)
        saver.settle_all()
        assert catalog.resolve("/run/4").durability == ("nvme", "pfs", "object")
        assert catalog.resolve("/run/1").durability == ("pfs", "object"), "what it left does not count again"

    def test_what_is_wanted_again_comes_back_with_its_record(self, saver: Saver, catalog: Catalog) -> None:
        old, new = safe(saver, "/run/1"), safe(saver, "/run/2")
        leave(saver, old, "object", new, "nvme")
        assert catalog.unkept_folders() == ["/run"]
        assert catalog.return_to_tier(old.publication_id, "object")
        assert not catalog.return_to_tier(old.publication_id, "object")
        assert catalog.unkept_folders() == []
        saver.settle_all()
        assert catalog.resolve("/run/1").durability == ("nvme", "pfs", "object")
        assert saver.work_off("object") == [], "what was owed when it left is withdrawn"
        leave(saver, old, "nvme", new, "object")
        catalog.return_to_tier(old.publication_id, "nvme")
        assert saver.drain("nvme") == 0, "a deeper tier holds it: the next reader brings it"

    def test_a_replaced_version_does_not_wait_for_a_tier_that_the_new_one_never_comes_to(self, saver: Saver, catalog: Catalog) -> None:
        old = safe(saver, "/run/1")
        ticket = saver.join("/run/1", replace=True, token="another-token")
        saver.store(ticket, digests=DIGESTS)
        catalog.publish(ticket.attempt_id, skips=["pfs", "object"])
        saver.settle_all()
        assert not catalog.publication(old.publication_id).live
        assert catalog.count()["superseded"] == 0

    def test_in_the_trash_it_comes_back_into_nothing(self, saver: Saver, catalog: Catalog) -> None:
        old, new = safe(saver, "/run/1"), safe(saver, "/run/2")
        leave(saver, old, "object", new, "nvme")
        catalog.discard(old.publication_id, because_of=new.publication_id, tier="", trash_s=60.0)
        assert catalog.unkept_folders() == []
        catalog.empty_trash(all_of_it=True)
        assert catalog.unkept([old.publication_id]) == {}
