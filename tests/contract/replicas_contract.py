"""What every catalog must know of where bytes are: drains, durability, replicas, and their deletion.

Mixed into the test class of each database, beside `CatalogContract`, whose fixtures it uses.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ckptstore import records
from ckptstore.catalog.model import Act
from ckptstore.errors import InvalidInput, NotFound
from tests.contract.catalog_contract import DIGESTS, TIERS, Saver


class ReplicasContract:
    # --- drains, records, durability -------------------------------------------------------------------------------------------

    def test_publishing_queues_a_drain_into_each_durable_tier_that_lacks_an_object(self, saver: Saver) -> None:
        published = saver.save("/run/1", names=["a", "b"])
        assert saver.catalog.pending_drains("nvme", limit=10) == []
        drains = saver.catalog.pending_drains("object", limit=10)
        assert {(d.path, d.publication_id, d.size_bytes, d.tries) for d in drains} == {
            ("/run/1/a", published.publication_id, 10, 0),
            ("/run/1/b", published.publication_id, 10, 0),
        }
        backlog = {item.tier: (item.objects, item.size_bytes) for item in saver.catalog.backlog()}
        assert backlog == {"nvme": (0, 0), "pfs": (2, 20), "object": (2, 20)}

    def test_drains_come_in_the_order_in_which_attempts_were_opened(self, saver: Saver) -> None:
        tickets = [saver.join(f"/run/{i}") for i in range(3)]
        for ticket in reversed(tickets):
            saver.store(ticket)
            saver.catalog.publish(ticket.attempt_id)
        assert [drain.path for drain in saver.catalog.pending_drains("pfs", limit=10)] == [
            f"/run/{i}/rank-00000.safetensors" for i in range(3)
        ]

    def test_a_failed_drain_waits_and_shows_its_error(self, saver: Saver) -> None:
        saver.save("/run/1")
        (drain,) = saver.catalog.pending_drains("object", limit=10)
        saver.catalog.drain_failed(drain.object_id, "object", "503 Slow Down", 3600.0)
        assert saver.catalog.pending_drains("object", limit=10) == []
        backlog = next(item for item in saver.catalog.backlog() if item.tier == "object")
        assert (backlog.objects, backlog.last_error) == (1, "503 Slow Down")
        assert saver.catalog.is_queued(drain.object_id, "object")
        saver.catalog.request_drain(drain.object_id, "object")
        assert [item.tries for item in saver.catalog.pending_drains("object", limit=10)] == [1]
        assert saver.catalog.add_replica(drain.object_id, "object")
        assert not saver.catalog.is_queued(drain.object_id, "object")

    def test_a_tier_counts_only_with_all_objects_and_the_record(self, saver: Saver) -> None:
        published = saver.save("/run/1", names=["a", "b"])
        assert published.durability == ()
        first, second = saver.catalog.pending_drains("pfs", limit=10)
        assert saver.catalog.add_replica(first.object_id, "pfs")
        assert saver.catalog.owed_records("pfs", limit=10) == []
        with pytest.raises(InvalidInput, match="not whole"):
            saver.catalog.record(published.publication_id, tier="pfs")
        assert saver.catalog.record_written(published.publication_id, "pfs").durability == ()
        assert saver.catalog.add_replica(second.object_id, "pfs")
        assert saver.catalog.owed_records("pfs", limit=10) == [published.publication_id]
        assert saver.catalog.record_written(published.publication_id, "pfs").durability == ("pfs",)
        assert saver.catalog.owed_records("pfs", limit=10) == []
        assert saver.catalog.list_folder("/run")[0].publication == saver.catalog.resolve("/run/1")

    def test_a_node_local_tier_counts_when_every_owner_has_its_record(self, open_node: Callable[[str], Saver]) -> None:
        a, b = open_node("node-a"), open_node("node-b")
        for rank, node in enumerate((a, b)):
            node.store(node.join("/run/1", rank=rank, world_size=2), rank)
        attempt_id = a.join("/run/1", world_size=2).attempt_id
        published = b.catalog.publish(attempt_id)
        for node, other in ((a, b), (b, a)):
            record = records.read_record(node.catalog.record(published.publication_id, tier="nvme"), subject="test")
            assert (record.header.complete, record.header.node, record.count) == (False, node.catalog.node, 1)
            assert node.settle("nvme") == [published.publication_id]
            expected = ("nvme",) if other is a else ()
            assert other.catalog.publication(published.publication_id).durability == expected
        for node in (a, b):
            assert [d.path[-10] for d in node.catalog.pending_drains("pfs", limit=10)] and node.drain("pfs") == 1
        finisher = a if a.catalog.owed_records("pfs", limit=1) else b
        record = records.read_record(finisher.catalog.record(attempt_id, tier="pfs"), subject="test")
        assert (record.header.complete, record.count) == (True, 2)

    def test_an_inactive_tier_gets_no_drains_and_no_durability(self, saver: Saver) -> None:
        saver.save("/run/1")
        saver.settle_all()
        saver.catalog.register_tiers(TIERS[:2])
        assert saver.catalog.resolve("/run/1").durability == ("nvme", "pfs")
        saver.save("/run/2")
        assert {item.tier for item in saver.catalog.backlog()} == {"nvme", "pfs"}
        with pytest.raises(InvalidInput, match="no tier 'object'"):
            saver.catalog.pending_drains("object", limit=1)

    # --- replicas --------------------------------------------------------------------------------------------------------------

    def test_the_last_copy_is_never_dropped(self, saver: Saver) -> None:
        published = saver.save("/run/1")
        (file,) = saver.catalog.files(published.publication_id)
        assert not saver.catalog.drop_replica(file.object_id, "nvme")
        saver.drain("object")
        assert saver.catalog.drop_replica(file.object_id, "nvme")
        assert not saver.catalog.drop_replica(file.object_id, "object")
        assert [replica.tier for replica in saver.catalog.replicas(file.object_id)] == ["object"]
        (chore,) = saver.catalog.chores("nvme", grace_s=1000.0, limit=10)
        assert (chore.act, chore.object_id) == (Act.DELETE_OBJECT, file.object_id)

    def test_what_a_compressed_replica_takes_is_known_until_it_is_put_anew(self, saver: Saver) -> None:
        ticket = saver.join("/run/1", names=["a", "b"])
        saver.catalog.snapshot_taken(ticket.attempt_id, 0)
        first, second = ticket.objects
        assert saver.catalog.object_stored(first.object_id, DIGESTS, tier="nvme", stored_bytes=5)
        assert saver.catalog.object_stored(second.object_id, DIGESTS, tier="nvme")
        saver.catalog.rank_stored(ticket.attempt_id, 0)
        published = saver.catalog.publish(ticket.attempt_id)
        assert saver.catalog.stored_bytes(published.publication_id) == {"nvme": 5 + DIGESTS.size_bytes}
        assert saver.catalog.add_replica(first.object_id, "pfs", stored_bytes=3)
        assert saver.catalog.add_replica(second.object_id, "pfs", stored_bytes=4)
        assert saver.catalog.add_replica(first.object_id, "object")
        assert saver.catalog.stored_bytes(published.publication_id) == {"nvme": 5 + DIGESTS.size_bytes, "pfs": 7}
        assert {r.tier: r.stored_bytes for r in saver.catalog.replicas(first.object_id)} == {"nvme": 5, "pfs": 3, "object": None}
        assert saver.catalog.add_replica(first.object_id, "nvme")
        assert saver.catalog.stored_bytes(published.publication_id) == {"pfs": 7}

    def test_a_replica_that_comes_back_withdraws_its_deletion(self, saver: Saver) -> None:
        published = saver.save("/run/1")
        (file,) = saver.catalog.files(published.publication_id)
        saver.drain("object")
        assert saver.catalog.drop_replica(file.object_id, "nvme")
        (chore,) = saver.catalog.chores("nvme", grace_s=0.0, limit=10)
        assert saver.catalog.still_due(chore)
        assert saver.catalog.add_replica(file.object_id, "nvme")
        assert not saver.catalog.still_due(chore)
        saver.catalog.chore_done(chore)
        assert {replica.tier for replica in saver.catalog.replicas(file.object_id)} == {"nvme", "object"}

    def test_what_may_be_evicted_is_covered_deeper_and_used_longest_ago(self, saver: Saver) -> None:
        ids = [saver.catalog.files(saver.save(f"/run/{i}").publication_id)[0].object_id for i in range(3)]
        assert saver.catalog.eviction_candidates("nvme", limit=10) == []
        saver.drain("object")
        assert saver.catalog.eviction_candidates("nvme", limit=10) == []
        saver.settle("object")
        assert [file.object_id for file in saver.catalog.eviction_candidates("nvme", limit=10)] == ids
        saver.catalog.touch([ids[0]], "nvme")
        assert [file.object_id for file in saver.catalog.eviction_candidates("nvme", limit=2)] == ids[1:]
        saver.catalog.mark_damaged(ids[1], "object")
        assert [file.object_id for file in saver.catalog.eviction_candidates("nvme", limit=2)] == [ids[2], ids[0]]

    def test_a_damaged_replica_is_queued_for_repair_and_the_tier_counts_again_after_it(self, saver: Saver) -> None:
        published = saver.save("/run/1")
        saver.settle_all()
        (file,) = saver.catalog.files(published.publication_id)
        saver.catalog.mark_damaged(file.object_id, "pfs")
        assert saver.catalog.publication(published.publication_id).durability == ("nvme", "object")
        assert [drain.object_id for drain in saver.catalog.pending_drains("pfs", limit=10)] == [file.object_id]
        assert saver.drain("pfs") == 1
        assert saver.settle("pfs") == [published.publication_id]
        assert saver.catalog.publication(published.publication_id).durability == ("nvme", "pfs", "object")

    def test_evicting_ends_the_durability_of_that_tier_only(self, saver: Saver) -> None:
        published = saver.save("/run/1")
        saver.settle_all()
        (file,) = saver.catalog.files(published.publication_id)
        assert saver.catalog.drop_replica(file.object_id, "nvme")
        assert saver.catalog.publication(published.publication_id).durability == ("pfs", "object")
        assert saver.catalog.pending_drains("nvme", limit=10) == []

    def test_objects_of_a_tier_come_in_pages(self, saver: Saver) -> None:
        for i in range(5):
            saver.save(f"/run/{i}")
        found: list[str] = []
        while page := saver.catalog.tier_objects("nvme", after=found[-1] if found else "", limit=2):
            found += [file.object_id for file in page]
            assert all(file.blocks == DIGESTS.blocks for file in page)
        assert found == sorted(found)
        assert len(found) == 5

    # --- deleting --------------------------------------------------------------------------------------------------------------

    def test_in_each_tier_the_tombstone_comes_first_then_the_record_then_the_objects(self, saver: Saver) -> None:
        published = saver.save("/run/1", names=["a", "b"])
        saver.settle_all()
        saver.catalog.remove("/run/1")
        done = saver.work_off()
        for tier in TIERS:
            acts = [chore.act for chore in done if chore.tier == tier.name]
            assert acts == [Act.WRITE_TOMBSTONE, Act.DELETE_RECORD, Act.DELETE_OBJECT, Act.DELETE_OBJECT, Act.DELETE_TOMBSTONE]
        last_deletion = max(i for i, chore in enumerate(done) if chore.act is not Act.DELETE_TOMBSTONE)
        first_farewell = min(i for i, chore in enumerate(done) if chore.act is Act.DELETE_TOMBSTONE)
        assert last_deletion < first_farewell
        tombstone = records.read_tombstone(next(c.document for c in done if c.act is Act.WRITE_TOMBSTONE), subject="test")
        assert (tombstone.publication_id, tombstone.path, tombstone.sequence) == (published.publication_id, "/run/1", published.sequence)
        with pytest.raises(NotFound):
            saver.catalog.publication(published.publication_id)

    def test_tombstones_stay_while_one_tier_has_not_acknowledged(self, saver: Saver) -> None:
        published = saver.save("/run/1")
        saver.settle_all()
        saver.catalog.remove("/run/1")
        done = saver.work_off("nvme", "pfs")
        assert Act.DELETE_TOMBSTONE not in {chore.act for chore in done}
        assert saver.catalog.publication(published.publication_id).live is False
        rest = saver.work_off("object")
        assert [chore.act for chore in rest] == [Act.WRITE_TOMBSTONE, Act.DELETE_RECORD, Act.DELETE_OBJECT, Act.DELETE_TOMBSTONE]

    def test_bytes_outlive_their_deletion_by_the_grace_period(self, saver: Saver) -> None:
        saver.save("/run/1")
        saver.catalog.remove("/run/1")
        for _ in range(2):
            for tier in TIERS:
                for chore in saver.catalog.chores(tier.name, grace_s=3600.0, limit=10):
                    assert chore.act is not Act.DELETE_OBJECT
                    saver.catalog.chore_done(chore)
        assert all(saver.catalog.chores(tier.name, grace_s=3600.0, limit=10) == [] for tier in TIERS)
        assert [chore.act for chore in saver.catalog.chores("nvme", grace_s=0.0, limit=10)] == [Act.DELETE_OBJECT]

    def test_a_failed_chore_waits(self, saver: Saver) -> None:
        saver.save("/run/1")
        saver.catalog.remove("/run/1")
        (chore,) = saver.catalog.chores("object", grace_s=0.0, limit=10)
        saver.catalog.chore_failed(chore, "no answer", 3600.0)
        assert saver.catalog.chores("object", grace_s=0.0, limit=10) == []
        saver.catalog.chore_failed(chore, "no answer", -1.0)
        assert saver.catalog.chores("object", grace_s=0.0, limit=10) == [chore]

    def test_a_drain_that_arrives_after_the_removal_is_refused_and_its_bytes_get_a_chore(self, saver: Saver) -> None:
        saver.save("/run/1")
        (drain,) = saver.catalog.pending_drains("object", limit=10)
        saver.catalog.remove("/run/1")
        assert saver.catalog.pending_drains("object", limit=10) == []
        assert not saver.catalog.add_replica(drain.object_id, "object")
        with pytest.raises(NotFound):
            saver.catalog.request_drain(drain.object_id, "object")
        saver.work_off()
        assert saver.catalog.count()["deleted"] == 0
        assert not saver.catalog.add_replica(drain.object_id, "object")

    def test_a_copy_recalled_to_another_node_is_deleted_there_too(self, open_node: Callable[[str], Saver]) -> None:
        a, b = open_node("node-a"), open_node("node-b")
        published = a.save("/run/1")
        a.settle_all()
        (file,) = a.catalog.files(published.publication_id)
        assert b.catalog.add_replica(file.object_id, "nvme")
        a.catalog.remove("/run/1")
        a.work_off()
        assert a.catalog.publication(published.publication_id).live is False
        assert [(chore.act, chore.tier) for chore in b.work_off("nvme")] == [(Act.DELETE_OBJECT, "nvme")]
        a.work_off()
        b.work_off()
        with pytest.raises(NotFound):
            a.catalog.publication(published.publication_id)

    def test_two_nodes_that_finish_the_last_chores_at_once_leave_nothing(self, open_node: Callable[[str], Saver]) -> None:
        nodes = [open_node("node-a"), open_node("node-b")]
        for number in range(3):
            for rank, node in enumerate(nodes):
                ticket = node.join(f"/run/{number}", rank=rank, world_size=2)
                node.store(ticket, rank)
            published = nodes[0].catalog.publish(ticket.attempt_id)
            for node in nodes:
                node.settle_all()
            nodes[0].catalog.remove(published.path)
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda node: node.work_off(), nodes))
            for node in nodes:
                node.work_off()
            assert nodes[0].catalog.count()["deleted"] == 0
