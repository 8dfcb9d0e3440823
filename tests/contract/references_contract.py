"""What every catalog must do with references: nobody's objects go while somebody needs them, and all go when nobody does.

Mixed into the test class of each database, beside `CatalogContract`, whose fixtures it uses.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ckptstore import records
from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Act, Chore, Publication
from ckptstore.catalog.restore import Outcome, RestoredFile, RestoredReference
from ckptstore.catalog.schema import counters, metadata, nodes, store
from ckptstore.errors import AttemptAborted, NotFound
from ckptstore.paths import new_id
from tests.contract.catalog_contract import TIERS, Saver

NAMES = tuple(tier.name for tier in TIERS)


def deleted_objects(done: list[Chore]) -> set[str]:
    return {chore.object_id or "" for chore in done if chore.act is Act.DELETE_OBJECT}


def rest(catalog: Catalog) -> dict[str, object]:
    """What is left to do."""
    return {tier: (catalog.chores(tier, grace_s=0.0, limit=9), catalog.pending_drains(tier, limit=9)) for tier in NAMES}


class ReferencesContract:
    def test_a_checkpoint_says_what_it_owns_and_what_it_refers_to(self, saver: Saver) -> None:
        base = saver.save("/run/1")
        new = saver.save_referring("/run/2", base, used_bytes=7)
        assert (new.size_bytes, new.referred_bytes) == (10, 7)
        (reference,) = saver.catalog.references(new.publication_id, with_blocks=True)
        assert (reference.publication_id, reference.path, reference.rank, reference.size_bytes) == (base.publication_id, "/run/1", 0, 7)
        assert reference.file == saver.catalog.files(base.publication_id)[0]

    def test_removed_in_any_order_each_object_goes_with_the_last_that_needs_it(self, saver: Saver) -> None:
        for number, order in enumerate(itertools.permutations(range(3))):
            run = f"/run{number}"
            first = saver.save(f"{run}/0")
            second = saver.save_referring(f"{run}/1", first)
            third = saver.save_referring(f"{run}/2", first, second)
            chain = [first, second, third]
            needs = [{0}, {0, 1}, {0, 1, 2}]
            objects = [saver.object_of(publication) for publication in chain]
            saver.settle_all()
            gone: set[int] = set()
            for position, which in enumerate(order):
                saver.catalog.remove(chain[which].path)
                done = saver.work_off()
                left = set(order[position + 1 :])
                needed = set().union(*(needs[other] for other in left)) if left else set()
                expected = {0, 1, 2} - needed - gone
                assert deleted_objects(done) == {objects[item] for item in expected}, f"{order}, after {which}"
                gone |= expected
                for other in needed:
                    assert {replica.tier for replica in saver.catalog.replicas(objects[other])} == set(NAMES)
            for publication in chain:
                with pytest.raises(NotFound):
                    saver.catalog.publication(publication.publication_id)
            assert saver.catalog.known_objects(objects) == set()

    def test_a_tier_counts_for_a_checkpoint_only_with_what_it_refers_to(self, saver: Saver) -> None:
        base = saver.save("/run/1")
        new = saver.save_referring("/run/2", base)
        old = saver.object_of(base)
        (mine,) = (drain for drain in saver.catalog.pending_drains("pfs", limit=9) if drain.object_id != old)
        assert saver.catalog.add_replica(mine.object_id, "pfs")
        assert saver.settle("pfs") == []
        assert saver.catalog.add_replica(old, "pfs")
        assert sorted(saver.settle("pfs")) == sorted([base.publication_id, new.publication_id])
        assert saver.catalog.publication(new.publication_id).durability == ("pfs",)
        saver.catalog.mark_damaged(old, "pfs")
        assert saver.catalog.publication(new.publication_id).durability == ()
        assert saver.catalog.add_replica(old, "pfs")
        saver.settle("pfs")
        assert saver.catalog.publication(new.publication_id).durability == ("pfs",)

    def test_what_is_referred_to_is_drained_although_its_own_checkpoint_is_gone(self, saver: Saver) -> None:
        base = saver.save("/run/1")
        new = saver.save_referring("/run/2", base)
        saver.catalog.remove("/run/1")
        saver.work_off()
        saver.settle_all()
        assert saver.catalog.resolve("/run/2").durability == NAMES
        assert {replica.tier for replica in saver.catalog.replicas(saver.object_of(base))} == set(NAMES)
        assert new.publication_id == saver.catalog.resolve("/run/@latest").publication_id

    def test_replacing_a_checkpoint_by_one_that_refers_to_it_keeps_what_that_needs(self, saver: Saver) -> None:
        old = saver.save("/run/latest")
        new = saver.save_referring("/run/latest", old, replace=True)
        shared = saver.object_of(old)
        saver.settle_all()
        saver.work_off()
        assert saver.catalog.resolve("/run/latest").publication_id == new.publication_id
        assert {replica.tier for replica in saver.catalog.replicas(shared)} == set(NAMES)
        saver.catalog.remove("/run/latest")
        assert shared in deleted_objects(saver.work_off())
        assert all(left == ([], []) for left in rest(saver.catalog).values())

    def test_an_open_attempt_pins_and_its_end_lets_go(self, saver: Saver) -> None:
        base = saver.save("/run/1")
        old = saver.object_of(base)
        saver.settle_all()
        ticket = saver.join("/run/2", token=new_id())
        saver.refer(ticket, base)
        assert [file.object_id for file in saver.catalog.eviction_candidates("nvme", limit=9)] == []
        assert not saver.catalog.drop_replica(old, "nvme")
        saver.catalog.remove("/run/1")
        assert deleted_objects(saver.work_off()) == set()
        saver.catalog.abort(ticket.attempt_id, "enough")
        assert deleted_objects(saver.work_off()) == {old, ticket.objects[0].object_id}
        with pytest.raises(NotFound):
            saver.catalog.object(old)

    def test_what_an_aborted_attempt_kept_outlives_its_deletion_by_the_grace_period(self, saver: Saver) -> None:
        base = saver.save("/run/1")
        saver.settle_all()
        ticket = saver.join("/run/2", token=new_id())
        saver.refer(ticket, base)
        saver.catalog.remove("/run/1")
        saver.work_off()
        saver.catalog.abort(ticket.attempt_id, "enough")
        due = [chore.object_id for tier in NAMES for chore in saver.catalog.chores(tier, grace_s=3600.0, limit=9)]
        assert saver.object_of(base) not in due

    def test_nothing_is_referred_to_that_may_go_or_is_not_there(self, saver: Saver) -> None:
        removed, damaged, evicted = (saver.save(f"/run/{number}") for number in range(3))
        saver.settle_all()
        assert saver.catalog.drop_replica(saver.object_of(evicted), "nvme")
        saver.catalog.mark_damaged(saver.object_of(damaged), "nvme")
        used = {saver.object_of(publication): 1 for publication in (removed, damaged, evicted)} | {new_id(): 1}
        saver.catalog.remove("/run/0")
        ticket = saver.join("/run/3", token=new_id())
        assert saver.catalog.refer(ticket.attempt_id, 0, used, tier="nvme") == set()
        saver.catalog.abort(ticket.attempt_id, "enough")
        with pytest.raises(AttemptAborted):
            saver.catalog.refer(ticket.attempt_id, 0, used, tier="nvme")

    def test_nothing_is_evicted_that_a_checkpoint_needs_which_is_not_recorded_deeper(self, saver: Saver) -> None:
        base = saver.save("/run/1")
        saver.settle_all()
        new = saver.save_referring("/run/2", base)
        saver.settle("nvme")
        old = saver.object_of(base)
        assert saver.catalog.eviction_candidates("nvme", limit=9) == []
        assert not saver.catalog.drop_replica(old, "nvme")
        saver.settle_all()
        assert {file.object_id for file in saver.catalog.eviction_candidates("nvme", limit=9)} == {old, saver.object_of(new)}
        saver.catalog.remove("/run/1")
        saver.work_off()
        assert saver.catalog.drop_replica(old, "nvme")
        assert saver.catalog.resolve("/run/2").durability == ("pfs", "object")

    def test_a_base_is_the_newest_checkpoint_of_the_folder_and_rank_that_this_node_has(
        self, saver: Saver, open_node: Callable[[str], Saver]
    ) -> None:
        saver.save("/run/1")
        newest = saver.save("/run/2")
        saver.save("/other/3")
        saver.save("/run/deeper/4")
        found = saver.catalog.bases("/run/5", 0, limit=1)
        assert [file.object_id for file in found] == [saver.object_of(newest)]
        assert found[0].blocks
        assert saver.catalog.bases("/run/5", 1, limit=1) == []
        assert open_node("node-b").catalog.bases("/run/5", 0, limit=1) == []
        assert len(saver.catalog.bases("/run/5", 0, limit=9)) == 2

    def test_two_nodes_that_lose_the_last_users_of_an_object_at_once_delete_it(self, open_node: Callable[[str], Saver]) -> None:
        nodes = [open_node("node-a"), open_node("node-b")]
        for number in range(3):
            base = nodes[0].save(f"/run/{number}/base")
            users = [nodes[0].save_referring(f"/run/{number}/{user}", base) for user in range(3)]
            for node in nodes:
                node.settle_all()
            old = nodes[0].object_of(base)
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda item: nodes[item[0] % 2].catalog.remove(item[1].path), enumerate([base, *users])))
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda node: node.work_off(), nodes))
            for node in nodes:
                node.work_off()
            assert nodes[0].catalog.known_objects([old]) == set()

    # --- rebuilding ------------------------------------------------------------------------------------------------------------

    def restore(self, catalog: Catalog, taken: list[bytes]) -> list[Outcome]:
        """As a rebuild does it, with every object found in every tier."""
        catalog.begin_restore("6f1c2f0e-6f0a-4a8e-9c57-0d1b7a0c1d2e", TIERS)
        outcomes = []
        for data in taken:
            record = records.read_record(data, subject="record")
            files = [RestoredFile(file, dict.fromkeys(NAMES)) for file in record.files()]
            referred = [RestoredReference(reference, dict.fromkeys(NAMES)) for reference in record.references()]
            outcomes.append(catalog.restore_publication(record.header, files, referred, recorded=NAMES))
        catalog.end_restore()
        catalog.register_tiers(TIERS)
        return outcomes

    def chain(self, saver: Saver) -> tuple[list[Publication], list[bytes]]:
        first = saver.save("/run/0")
        chain = [first, saver.save_referring("/run/1", first), saver.save_referring("/run/2", first)]
        saver.settle_all()
        return chain, [saver.catalog.record(publication.publication_id, tier="pfs") for publication in chain]

    def test_a_rebuild_brings_references_back_in_whatever_order_the_records_are_read(self, saver: Saver) -> None:
        chain, taken = self.chain(saver)
        saver.catalog.remove("/run", recursive=True)
        saver.work_off()
        for order in itertools.permutations(taken):
            with_empty(saver.catalog)
            assert self.restore(saver.catalog, list(order)) == [Outcome.LIVE] * 3
            for publication in chain:
                found = saver.catalog.resolve(publication.path)
                assert (found.durability, found.referred_bytes) == (NAMES, publication.referred_bytes)
            saver.catalog.remove("/run/0")
            referred = {line.file.object_id for line in saver.catalog.references(chain[1].publication_id)}
            assert deleted_objects(saver.work_off()) & referred == set()
            saver.catalog.remove("/run", recursive=True)
            assert deleted_objects(saver.work_off()) >= referred

    def test_a_rebuild_keeps_an_object_whose_own_checkpoint_is_gone_for_good(self, saver: Saver) -> None:
        chain, taken = self.chain(saver)
        base = saver.object_of(chain[0])
        saver.catalog.remove("/run", recursive=True)
        saver.work_off()
        with_empty(saver.catalog)
        assert self.restore(saver.catalog, taken[1:]) == [Outcome.LIVE] * 2
        with pytest.raises(NotFound):
            saver.catalog.resolve("/run/0")
        assert saver.catalog.resolve("/run/1").durability == NAMES
        assert {chore.act for tier in NAMES for chore in saver.catalog.chores(tier, grace_s=0.0, limit=9)} == set()
        saver.catalog.remove("/run/1")
        assert base not in deleted_objects(saver.work_off())
        saver.catalog.remove("/run/2")
        assert base in deleted_objects(saver.work_off())
        assert saver.catalog.known_objects([base]) == set()


def with_empty(catalog: Catalog) -> None:
    """Forget everything, as if the database had been lost."""
    with catalog._db._engine.begin() as tx:
        for table in metadata.sorted_tables:
            if table not in (store, counters, nodes):
                tx.execute(table.delete())
        tx.execute(counters.update().values(value=0))
