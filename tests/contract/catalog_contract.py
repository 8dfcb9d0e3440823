"""What every catalog must do, whatever database is below it. Subclasses give `url`; every test opens its own catalogs on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from ckptstore import records
from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Act, AttemptState, Chore, Join, Kind, Publication, Ticket, TierRow
from ckptstore.catalog.shard_documents import Document
from ckptstore.errors import AlreadyExists, AttemptAborted, CkptStoreError, InvalidInput, NotFound, WrongStore
from ckptstore.paths import new_id
from ckptstore.shard_merging import RankDocuments
from ckptstore_tiers.checksums import BlockDigests

TIERS = (TierRow("nvme", 0, False, True), TierRow("pfs", 1, True, True), TierRow("object", 2, True, True))
DIGESTS = BlockDigests.of(b"some bytes")


@dataclass
class Saver:
    """Drives a catalog as a daemon would, without any bytes."""

    catalog: Catalog

    def join(
        self, path: str, *, token: str = "token-01", ordinal: int = 0, rank: int = 0, world_size: int = 1,
        names: Sequence[str] | None = None, kind: Kind = Kind.CHECKPOINT, session: str | None = None, replace: bool = False,
    ) -> Ticket:  # fmt: skip
        files = list(names) if names is not None else [f"rank-{rank:05}.safetensors"] if kind is Kind.CHECKPOINT else [""]
        join = Join(path, token, ordinal, rank, world_size, kind, self.catalog.node, session or f"session-{rank}", replace, 7, '{"a":1}')
        return self.catalog.join(join, files)

    def store(self, ticket: Ticket, rank: int = 0, *, tier: str = "nvme", digests: BlockDigests = DIGESTS) -> bool:
        self.catalog.snapshot_taken(ticket.attempt_id, rank)
        for item in ticket.objects:
            assert self.catalog.object_stored(item.object_id, digests, tier=tier)
        return self.catalog.rank_stored(ticket.attempt_id, rank)[1]

    def save(self, path: str, *, token: str | None = None, **options: object) -> Publication:
        ticket = self.join(path, token=token or new_id(), **options)  # type: ignore[arg-type]
        assert self.store(ticket)
        return self.catalog.publish(ticket.attempt_id)

    def save_referring(self, path: str, *bases: Publication, used_bytes: int = 7, **options: object) -> Publication:
        """A checkpoint that uses tensors of the others' first files."""
        ticket = self.join(path, token=new_id(), **options)  # type: ignore[arg-type]
        self.refer(ticket, *bases, used_bytes=used_bytes)
        assert self.store(ticket)
        return self.catalog.publish(ticket.attempt_id)

    def refer(self, ticket: Ticket, *bases: Publication, used_bytes: int = 7) -> None:
        used = {self.object_of(base): used_bytes for base in bases}
        assert self.catalog.refer(ticket.attempt_id, 0, used, tier="nvme") == set(used)

    def object_of(self, publication: Publication) -> str:
        return self.catalog.files(publication.publication_id)[0].object_id

    def settle(self, tier: str) -> list[str]:
        """Write the records that are owed in a tier."""
        written = []
        while owed := self.catalog.owed_records(tier, limit=10):
            for publication_id in owed:
                records.read_record(self.catalog.record(publication_id, tier=tier), subject=publication_id)
                self.catalog.record_written(publication_id, tier)
                written.append(publication_id)
        return written

    def drain(self, tier: str) -> int:
        moved = 0
        while due := self.catalog.pending_drains(tier, limit=10):
            for drain in due:
                assert self.catalog.add_replica(drain.object_id, tier)
                moved += 1
        return moved

    def settle_all(self) -> None:
        for tier in TIERS:
            self.drain(tier.name)
            self.settle(tier.name)

    def work_off(self, *tiers: str) -> list[Chore]:
        """Do all chores of these tiers (by default all), in the order in which they are given."""
        done: list[Chore] = []
        names = tiers or tuple(tier.name for tier in TIERS)
        while chores := [chore for name in names for chore in self.catalog.chores(name, grace_s=0.0, limit=3)]:
            for chore in chores:
                self.catalog.chore_done(chore)
            done += chores
        return done


class CatalogContract:
    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def open_node(self, url: str) -> Iterator[Callable[[str], Saver]]:
        """Opens the catalog as a node; all are closed at the end."""
        opened: list[Catalog] = []

        def open_node(node: str) -> Saver:
            catalog = Catalog.open(url, node=node, node_name=f"host of {node}")
            opened.append(catalog)
            catalog.register_tiers(TIERS)
            return Saver(catalog)

        yield open_node
        for catalog in opened:
            catalog.close()

    @pytest.fixture
    def saver(self, open_node: Callable[[str], Saver]) -> Saver:
        return open_node("node-a")

    @pytest.fixture
    def catalog(self, saver: Saver) -> Catalog:
        return saver.catalog

    # --- opening ---------------------------------------------------------------------------------------------------------------

    def test_a_catalog_keeps_its_store_id_when_it_is_opened_again(self, open_node: Callable[[str], Saver]) -> None:
        assert open_node("node-a").catalog.store_id == open_node("node-b").catalog.store_id

    def test_a_catalog_is_empty_until_something_was_recorded(self, saver: Saver) -> None:
        assert saver.catalog.is_empty()
        ticket = saver.join("/a")
        assert not saver.catalog.is_empty()
        saver.catalog.abort(ticket.attempt_id, "enough")
        assert not saver.catalog.is_empty()

    def test_only_an_empty_catalog_adopts_the_id_of_a_store(self, saver: Saver) -> None:
        saver.catalog.adopt_store_id("0b6ff6a0-0000-4000-8000-000000000000")
        assert saver.catalog.store_id == "0b6ff6a0-0000-4000-8000-000000000000"
        saver.save("/a")
        with pytest.raises(WrongStore):
            saver.catalog.adopt_store_id("11111111-0000-4000-8000-000000000000")

    def test_a_tier_cannot_be_shared_on_one_node_and_local_on_another(self, saver: Saver, open_node: Callable[[str], Saver]) -> None:
        other = open_node("node-b").catalog
        with pytest.raises(InvalidInput, match="shared"):
            other.register_tiers([TierRow("nvme", 0, True, True)])

    # --- attempts --------------------------------------------------------------------------------------------------------------

    def test_joining_again_gives_the_same_ids(self, saver: Saver) -> None:
        first = saver.join("/run/1", names=["a", "b/c"])
        assert saver.join("/run/1", names=["a", "b/c"]) == first
        assert [item.name for item in first.objects] == ["a", "b/c"]
        assert first.objects[1].key == f"objects/run/1/b/c~{first.objects[1].object_id}"

    def test_ranks_that_disagree_about_the_attempt_are_refused(self, saver: Saver) -> None:
        saver.join("/run/1", world_size=2)
        with pytest.raises(InvalidInput, match="world_size"):
            saver.join("/run/1", rank=1, world_size=3)
        with pytest.raises(InvalidInput, match="kind"):
            saver.join("/run/1", rank=1, world_size=2, kind=Kind.FOLDER, names=["x"])
        with pytest.raises(InvalidInput, match="replace"):
            saver.join("/run/1", rank=1, world_size=2, replace=True)
        with pytest.raises(InvalidInput, match="world_size"):
            saver.join("/run/1", rank=2, world_size=2)
        with pytest.raises(InvalidInput, match="another process"):
            saver.join("/run/1", rank=0, world_size=2, session="somebody else")

    def test_one_name_belongs_to_one_rank_and_is_not_both_file_and_folder(self, saver: Saver) -> None:
        ticket = saver.join("/run/1", world_size=2, names=["shared", "deep/er"])
        with pytest.raises(InvalidInput, match="'shared'"):
            saver.join("/run/1", rank=1, world_size=2, names=["shared"])
        for name in ("deep", "shared/below"):
            with pytest.raises(InvalidInput, match="a file and a folder"):
                saver.catalog.add_objects(ticket.attempt_id, 0, [name])
        with pytest.raises(InvalidInput, match="a file and a folder"):
            saver.catalog.add_objects(ticket.attempt_id, 0, ["x", "x/y"])

    @pytest.mark.parametrize("name", ["", "/a", "a//b", "../x", "@latest", "a\x00b"])
    def test_bad_names_are_refused_and_nothing_is_recorded(self, saver: Saver, name: str) -> None:
        with pytest.raises(InvalidInput):
            saver.join("/run/1", names=["good", name])
        assert saver.catalog.is_empty()

    def test_a_checkpoint_is_invisible_until_its_last_rank_is_stored_and_it_is_published(self, saver: Saver) -> None:
        tickets = [saver.join("/run/1", rank=rank, world_size=3) for rank in range(3)]
        assert [saver.store(ticket, rank) for rank, ticket in enumerate(tickets)] == [False, False, True]
        view = saver.catalog.attempt(tickets[0].attempt_id)
        assert (view.state, view.joined, view.snapshots, view.stored) == (AttemptState.COMPLETE, 3, 3, 3)
        with pytest.raises(NotFound):
            saver.catalog.entry("/run/1")
        published = saver.catalog.publish(view.attempt_id)
        assert saver.catalog.resolve("/run/1") == published
        assert (published.file_count, published.size_bytes, published.world_size, published.step) == (3, 30, 3, 7)
        assert saver.catalog.attempt(view.attempt_id).publication_id == published.publication_id

    def test_a_rank_is_not_stored_before_its_files_are(self, saver: Saver) -> None:
        ticket = saver.join("/run/1")
        with pytest.raises(InvalidInput, match="not stored"):
            saver.catalog.rank_stored(ticket.attempt_id, 0)
        with pytest.raises(InvalidInput, match="0 of 1 ranks"):
            saver.catalog.publish(ticket.attempt_id)

    def test_every_step_can_be_repeated(self, saver: Saver) -> None:
        ticket = saver.join("/run/1")
        for _ in range(2):
            view = saver.catalog.snapshot_taken(ticket.attempt_id, 0)
            assert view.snapshots == 1
            assert saver.catalog.object_stored(ticket.objects[0].object_id, DIGESTS, tier="nvme")
        assert [saver.catalog.rank_stored(ticket.attempt_id, 0)[1] for _ in range(3)] == [True, False, False]
        published = saver.catalog.publish(ticket.attempt_id)
        assert saver.catalog.publish(ticket.attempt_id) == published
        assert saver.catalog.object_stored(ticket.objects[0].object_id, DIGESTS, tier="nvme")

    def test_an_object_never_gets_other_bytes(self, saver: Saver) -> None:
        ticket = saver.join("/run/1")
        assert saver.catalog.object_stored(ticket.objects[0].object_id, DIGESTS, tier="nvme")
        with pytest.raises(InvalidInput, match="other bytes"):
            saver.catalog.object_stored(ticket.objects[0].object_id, BlockDigests.of(b"different"), tier="pfs")
        assert saver.catalog.object(ticket.objects[0].object_id).root == DIGESTS.root

    def test_who_completes_a_checkpoint_records_its_index_with_it_and_who_completes_files_does_not(self, saver: Saver) -> None:
        ticket = saver.join("/a", names=["part"])
        assert saver.catalog.object_stored(ticket.objects[0].object_id, DIGESTS, tier="nvme")
        assert saver.catalog.rank_stored(ticket.attempt_id, 0, index="checkpoint.json")[1]
        files = {file.name: file for file in saver.catalog.attempt_files(ticket.attempt_id)}
        assert sorted(files) == ["checkpoint.json", "part"]
        (index,) = saver.catalog.add_objects(ticket.attempt_id, 0, ["checkpoint.json"])
        assert (index.object_id, index.key) == (files["checkpoint.json"].object_id, files["checkpoint.json"].key)
        with pytest.raises(InvalidInput, match="1 of 2 files are not stored"):
            saver.catalog.publish(ticket.attempt_id)
        files_only = saver.join("/b", names=["part"], kind=Kind.FOLDER)
        assert saver.catalog.object_stored(files_only.objects[0].object_id, DIGESTS, tier="nvme")
        assert saver.catalog.rank_stored(files_only.attempt_id, 0, index="checkpoint.json")[1]
        assert [file.name for file in saver.catalog.attempt_files(files_only.attempt_id)] == ["part"]

    def test_an_index_can_be_added_to_a_complete_attempt_and_is_published_with_it(self, saver: Saver) -> None:
        ticket = saver.join("/run/1")
        assert saver.store(ticket)
        (index,) = saver.catalog.add_objects(ticket.attempt_id, 0, ["checkpoint.json"])
        assert saver.catalog.add_objects(ticket.attempt_id, 0, ["checkpoint.json"]) == (index,)
        with pytest.raises(InvalidInput, match="1 of 2 files"):
            saver.catalog.publish(ticket.attempt_id)
        assert saver.catalog.object_stored(index.object_id, DIGESTS, tier="nvme")
        names = [file.name for file in saver.catalog.attempt_files(ticket.attempt_id, with_blocks=True)]
        assert names == ["checkpoint.json", "rank-00000.safetensors"]
        assert saver.catalog.publish(ticket.attempt_id).file_count == 2

    def test_four_ranks_on_two_nodes_complete_it_exactly_once(self, open_node: Callable[[str], Saver]) -> None:
        nodes = [open_node("node-a"), open_node("node-b")]
        for number in range(5):
            barrier = threading.Barrier(4)

            def rank_of(rank: int, number: int = number, barrier: threading.Barrier = barrier) -> tuple[str, bool]:
                saver = nodes[rank % 2]
                barrier.wait(30)
                ticket = saver.join(f"/run/{number}", rank=rank, world_size=4)
                return ticket.attempt_id, saver.store(ticket, rank)

            with ThreadPoolExecutor(4) as pool:
                results = list(pool.map(rank_of, range(4)))
            assert len({attempt_id for attempt_id, _ in results}) == 1
            assert sum(completed for _, completed in results) == 1
            view = nodes[1].catalog.attempt(results[0][0])
            assert (view.state, view.joined, view.snapshots, view.stored) == (AttemptState.COMPLETE, 4, 4, 4)

    def test_eight_threads_that_publish_and_abort_agree_on_one_outcome(self, open_node: Callable[[str], Saver]) -> None:
        nodes = [open_node("node-a"), open_node("node-b")]
        for number in range(5):
            ticket = nodes[0].join(f"/run/{number}")
            assert nodes[0].store(ticket)
            barrier = threading.Barrier(8)

            def end(turn: int, attempt_id: str = ticket.attempt_id, barrier: threading.Barrier = barrier) -> str:
                catalog = nodes[turn % 2].catalog
                barrier.wait(30)
                try:
                    if turn < 4:
                        catalog.publish(attempt_id)
                        return "published"
                    catalog.abort(attempt_id, "enough")
                    return "aborted"
                except (AttemptAborted, InvalidInput) as error:
                    return type(error).__name__

            with ThreadPoolExecutor(8) as pool:
                outcomes = list(pool.map(end, range(8)))
            state = nodes[0].catalog.attempt(ticket.attempt_id).state
            expected = {"published"} if state is AttemptState.PUBLISHED else {"aborted"}
            assert state in (AttemptState.PUBLISHED, AttemptState.ABORTED)
            assert set(outcomes) & {"published", "aborted"} == expected
            assert outcomes.count(next(iter(expected))) == 4

    def test_of_two_attempts_at_one_path_the_first_to_publish_wins(self, open_node: Callable[[str], Saver]) -> None:
        nodes = [open_node("node-a"), open_node("node-b")]
        tickets = [node.join("/run/1", token=f"incarnation-{i}") for i, node in enumerate(nodes)]
        assert all(node.store(ticket) for node, ticket in zip(nodes, tickets, strict=True))
        barrier = threading.Barrier(2)

        def publish(turn: int) -> CkptStoreError | Publication:
            barrier.wait(30)
            try:
                return nodes[turn].catalog.publish(tickets[turn].attempt_id)
            except CkptStoreError as error:
                return error

        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(publish, range(2)))
        (winner,) = [o for o in outcomes if isinstance(o, Publication)]
        (loser,) = [o for o in outcomes if isinstance(o, AlreadyExists)]
        lost = tickets[outcomes.index(loser)]
        assert nodes[0].catalog.resolve("/run/1").publication_id == winner.publication_id
        view = nodes[0].catalog.attempt(lost.attempt_id)
        assert view.state is AttemptState.ABORTED
        assert "published" in (view.reason or "")

    def test_ranks_of_different_incarnations_never_mix(self, saver: Saver) -> None:
        old = saver.join("/run/1", token="incarnation-1", rank=0, world_size=2)
        saver.store(old, 0)
        new = [saver.join("/run/1", token="incarnation-2", rank=rank, world_size=2) for rank in range(2)]
        assert new[0].attempt_id == new[1].attempt_id != old.attempt_id
        assert [saver.store(ticket, rank) for rank, ticket in enumerate(new)] == [False, True]
        published = saver.catalog.publish(new[0].attempt_id)
        mine = {item.object_id for ticket in new for item in ticket.objects}
        assert {file.object_id for file in saver.catalog.files(published.publication_id)} == mine

    def test_an_aborted_attempt_answers_everybody_with_its_reason_and_leaves_chores_for_its_bytes(self, saver: Saver) -> None:
        ticket = saver.join("/run/1", world_size=2)
        saver.store(ticket, 0)
        view = saver.catalog.abort(ticket.attempt_id, "rank 1 skipped")
        assert (view.reason, saver.catalog.abort(ticket.attempt_id, "again").reason) == ("rank 1 skipped", "rank 1 skipped")
        with pytest.raises(AttemptAborted, match="rank 1 skipped"):
            saver.join("/run/1", rank=1, world_size=2)
        with pytest.raises(AttemptAborted, match="rank 1 skipped"):
            saver.catalog.snapshot_taken(ticket.attempt_id, 0)
        with pytest.raises(AttemptAborted, match="rank 1 skipped"):
            saver.catalog.rank_stored(ticket.attempt_id, 0)
        with pytest.raises(AttemptAborted, match="rank 1 skipped"):
            saver.catalog.publish(ticket.attempt_id)
        assert not saver.catalog.object_stored(ticket.objects[0].object_id, DIGESTS, tier="nvme")
        done = saver.work_off()
        assert {(chore.act, chore.tier, chore.key) for chore in done} == {
            (Act.DELETE_OBJECT, tier.name, ticket.objects[0].key) for tier in TIERS
        }
        assert saver.catalog.replicas(ticket.objects[0].object_id) == []

    def test_bytes_that_arrive_after_the_abort_get_a_chore_again(self, saver: Saver) -> None:
        ticket = saver.join("/run/1")
        saver.catalog.abort(ticket.attempt_id, "enough")
        saver.work_off()
        assert not saver.catalog.object_stored(ticket.objects[0].object_id, DIGESTS, tier="nvme")
        (chore,) = saver.catalog.chores("nvme", grace_s=300.0, limit=10)
        assert (chore.act, chore.key) == (Act.DELETE_OBJECT, ticket.objects[0].key)

    def test_an_attempt_without_progress_expires_by_the_databases_clock(self, saver: Saver) -> None:
        ticket = saver.join("/run/1")
        assert saver.catalog.expire(60.0) == []
        (view,) = saver.catalog.expire(-1.0)
        assert (view.attempt_id, view.state) == (ticket.attempt_id, AttemptState.ABORTED)
        assert "no progress" in (view.reason or "")
        assert saver.catalog.expire(-1.0) == []

    def test_what_ranks_say_of_their_shards_is_kept_once_and_until_the_attempt_has_ended(self, saver: Saver) -> None:
        catalog, ticket = saver.catalog, saver.join("/run/1")
        plan = Document("plan", b"of both ranks")
        earlier = [  # the last one says it again
            catalog.declare_shards(ticket.attempt_id, rank, plan, Document(f"leaves {rank}", bytes([rank]))) for rank in (0, 1, 1)
        ]
        assert earlier == [[], [b"\0"], []], "of two ranks that say the same, one finds the other's, and only at its first try"
        assert catalog.rank_documents(ticket.attempt_id) == [RankDocuments(rank, "plan", f"leaves {rank}") for rank in (0, 1)]
        assert catalog.shard_documents(ticket.attempt_id) == {"plan": b"of both ranks", "leaves 0": b"\0", "leaves 1": b"\1"}
        catalog.expire(60.0)
        assert len(catalog.rank_documents(ticket.attempt_id)) == 2
        catalog.abort(ticket.attempt_id, "enough")
        catalog.expire(60.0)
        assert catalog.rank_documents(ticket.attempt_id) == [] and catalog.shard_documents(ticket.attempt_id) == {}

    def test_a_complete_attempt_does_not_expire(self, saver: Saver) -> None:
        ticket = saver.join("/run/1")
        saver.store(ticket)
        assert saver.catalog.expire(-1.0) == []
        assert saver.catalog.publish(ticket.attempt_id).live

    def test_a_restarted_daemon_abandons_what_was_in_its_memory_and_keeps_what_is_complete(self, open_node: Callable[[str], Saver]) -> None:
        a, b = open_node("node-a"), open_node("node-b")
        complete = a.join("/run/complete")
        a.store(complete)
        staged = a.join("/run/staged")
        elsewhere = b.join("/run/elsewhere")
        (view,) = a.catalog.abandon("node-a", "the daemon was restarted")
        assert view.attempt_id == staged.attempt_id
        assert b.catalog.attempt(elsewhere.attempt_id).state is AttemptState.OPEN
        assert [v.attempt_id for v in a.catalog.attempts([AttemptState.COMPLETE], node="node-a")] == [complete.attempt_id]
        assert a.catalog.attempts([AttemptState.COMPLETE], node="node-b") == []

    def test_a_lost_session_aborts_what_it_had_not_handed_over(self, saver: Saver) -> None:
        handed = saver.join("/run/handed", session="s-1")
        saver.catalog.snapshot_taken(handed.attempt_id, 0)
        staging = saver.join("/run/staging", session="s-1")
        other = saver.join("/run/other", session="s-2")
        assert [v.attempt_id for v in saver.catalog.session_lost("s-1", "killed")] == [staging.attempt_id]
        states = {view.attempt_id for view in saver.catalog.attempts([AttemptState.OPEN])}
        assert states == {handed.attempt_id, other.attempt_id}
