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
from ckptstore.errors import AlreadyExists, AttemptAborted, CkptStoreError, InvalidInput, NotFound, PathConflict, WrongStore
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

    # --- namespace -------------------------------------------------------------------------------------------------------------

    def test_saving_over_a_path_needs_replace(self, saver: Saver) -> None:
        saver.save("/run/1")
        with pytest.raises(AlreadyExists):
            saver.join("/run/1", token="again-01")
        with pytest.raises(PathConflict, match="/run/1 is published"):
            saver.join("/run/1/below", token="again-01")
        with pytest.raises(PathConflict, match="folder"):
            saver.join("/run", token="again-01", replace=True)

    def test_a_path_taken_between_join_and_publish_aborts_the_attempt(self, saver: Saver) -> None:
        late = saver.join("/run", kind=Kind.FILE)
        saver.store(late)
        saver.save("/run/1")
        with pytest.raises(PathConflict):
            saver.catalog.publish(late.attempt_id)
        assert saver.catalog.attempt(late.attempt_id).state is AttemptState.ABORTED
        assert [e.name for e in saver.catalog.list_folder("/run")] == ["1"]

    def test_a_listing_is_in_byte_order_and_comes_in_pages(self, saver: Saver) -> None:
        names = ["B", "a", "a-1", "a.b", "aB", "z", "é", "日本", "Ω", "~x"]
        for name in names:
            saver.save(f"/run/{name}")
        ordered = sorted(names, key=str.encode)
        assert [entry.name for entry in saver.catalog.list_folder("/run")] == ordered
        pages: list[str] = []
        while page := saver.catalog.list_folder("/run", after=pages[-1] if pages else "", limit=3):
            pages += [entry.name for entry in page]
        assert pages == ordered

    def test_a_publication_lists_its_files_one_level_at_a_time(self, saver: Saver) -> None:
        saver.save("/m", kind=Kind.FOLDER, names=["a/x", "a/y/z", "a.txt", "b"])
        catalog = saver.catalog
        assert [(e.name, e.kind) for e in catalog.list_folder("/m")] == [("a", "folder"), ("a.txt", "file"), ("b", "file")]
        assert [(e.path, e.kind) for e in catalog.list_folder("/m/a", limit=1)] == [("/m/a/x", "file")]
        assert [(e.path, e.kind) for e in catalog.list_folder("/m/a", after="x")] == [("/m/a/y", "folder")]
        assert catalog.entry("/m/a/y").kind == "folder"
        assert catalog.entry("/m/a/y/z").size_bytes == 10
        assert catalog.file("/m/a/y/z")[1].name == "a/y/z"
        for missing in ("/m/c", "/m/a/x/y", "/n", "/m/a/y/zz"):
            with pytest.raises(NotFound):
                catalog.entry(missing)
            with pytest.raises(NotFound):
                catalog.list_folder(missing)

    def test_a_single_file_is_a_publication(self, saver: Saver) -> None:
        published = saver.save("/data/words.txt", kind=Kind.FILE)
        assert saver.catalog.file("/data/words.txt")[0] == published
        assert saver.catalog.entry("/data/words.txt").kind == "file"
        with pytest.raises(NotFound):
            saver.catalog.list_folder("/data/words.txt")
        with pytest.raises(NotFound):
            saver.catalog.file("/data")

    def test_files_come_in_pages_and_by_rank(self, saver: Saver) -> None:
        published = saver.save("/m", names=[f"f{i:02}" for i in range(7)])
        pages: list[str] = []
        while page := saver.catalog.files(published.publication_id, after=pages[-1] if pages else "", limit=3, with_blocks=False):
            pages += [file.name for file in page]
            assert all(file.blocks == b"" for file in page)
        assert pages == [f"f{i:02}" for i in range(7)]
        assert saver.catalog.files(published.publication_id, rank=1) == []
        assert saver.catalog.files(published.publication_id, rank=0, limit=1)[0].blocks == DIGESTS.blocks

    def test_latest_goes_by_opening_not_by_publishing_and_only_checkpoints_count(self, saver: Saver) -> None:
        first, second = saver.join("/run/step-9"), saver.join("/run/step-10")
        for ticket in (second, first):
            saver.store(ticket)
            saver.catalog.publish(ticket.attempt_id)
        saver.save("/run/notes", kind=Kind.FILE)
        saver.save("/run/below/step-11")
        assert saver.catalog.resolve("/run/@latest").path == "/run/step-10"
        with pytest.raises(NotFound):
            saver.catalog.resolve("/elsewhere/@latest")
        with pytest.raises(NotFound):
            saver.catalog.resolve("/run")

    def test_latest_passes_over_what_this_node_cannot_reach(self, open_node: Callable[[str], Saver]) -> None:
        a, b = open_node("node-a"), open_node("node-b")
        a.save("/run/1")
        a.settle_all()
        a.save("/run/2")
        assert a.catalog.resolve("/run/@latest").path == "/run/2"
        assert b.catalog.resolve("/run/@latest").path == "/run/1"
        a.drain("pfs")
        assert b.catalog.resolve("/run/@latest").path == "/run/2"
        (file,) = a.catalog.files(a.catalog.resolve("/run/2").publication_id)
        for tier in ("nvme", "pfs"):
            a.catalog.mark_damaged(file.object_id, tier)
        assert a.catalog.resolve("/run/@latest").path == "/run/1"

    def test_usage_sums_what_is_at_and_below_a_path(self, saver: Saver) -> None:
        saver.save("/a/b/1", names=["x", "y"])
        saver.save("/a/b/2")
        saver.save("/a/bc")
        saver.save("/a/b!")
        assert saver.catalog.usage("/a/b") == (2, 3, 30)
        assert saver.catalog.usage("/a/b/1") == (1, 2, 20)
        assert saver.catalog.usage("/") == (4, 5, 50)
        assert saver.catalog.count()["publications"] == 4

    def test_removing_takes_empty_folders_with_it_and_leaves_full_ones(self, saver: Saver) -> None:
        saver.save("/a/b/c/1")
        saver.save("/a/2")
        with pytest.raises(PathConflict, match="folder"):
            saver.catalog.remove("/a/b")
        with pytest.raises(PathConflict, match="closed"):
            saver.catalog.remove("/a/2/rank-00000.safetensors")
        (removed,) = saver.catalog.remove("/a/b/c/1")
        assert removed.path == "/a/b/c/1"
        assert [entry.name for entry in saver.catalog.list_folder("/a")] == ["2"]
        with pytest.raises(NotFound):
            saver.catalog.remove("/a/b")
        saver.catalog.remove("/a/2")
        assert saver.catalog.list_folder("/") == []

    def test_removing_recursively_removes_all_below_and_nothing_beside(self, saver: Saver) -> None:
        for path in ("/a/b/1", "/a/b/c/2", "/a/b-1", "/a/b0"):
            saver.save(path)
        assert {item.path for item in saver.catalog.remove("/a/b", recursive=True)} == {"/a/b/1", "/a/b/c/2"}
        assert [entry.name for entry in saver.catalog.list_folder("/a")] == ["b-1", "b0"]
        assert not saver.catalog.publication(saver.catalog.resolve("/a/b0").publication_id).durability

    def test_what_was_published_and_removed_can_be_saved_again(self, saver: Saver) -> None:
        first = saver.save("/run/1")
        saver.catalog.remove("/run/1")
        second = saver.save("/run/1")
        assert second.sequence > first.sequence
        assert second.opened > first.opened
        assert not saver.catalog.publication(first.publication_id).live

    # --- replacing -------------------------------------------------------------------------------------------------------------

    def test_a_replaced_version_stays_until_the_new_one_is_as_durable(self, saver: Saver) -> None:
        old = saver.save("/run/1")
        saver.settle_all()
        new = saver.save("/run/1", replace=True)
        assert saver.catalog.resolve("/run/1").publication_id == new.publication_id
        assert saver.catalog.count()["superseded"] == 1
        for tier in ("nvme", "pfs"):
            saver.drain(tier)
            saver.settle(tier)
            assert saver.catalog.count()["superseded"] == 1, tier
            assert saver.catalog.chores(tier, grace_s=0.0, limit=10) == []
        saver.drain("object")
        saver.settle("object")
        assert saver.catalog.count()["superseded"] == 0
        done = saver.work_off()
        assert {chore.publication_id for chore in done} == {old.publication_id}
        with pytest.raises(NotFound):
            saver.catalog.publication(old.publication_id)
        assert saver.catalog.resolve("/run/1").durability == ("nvme", "pfs", "object")

    def test_a_replaced_version_is_not_drained_further(self, saver: Saver) -> None:
        saver.save("/run/1")
        saver.settle("nvme")
        new = saver.save("/run/1", replace=True)
        assert {drain.publication_id for drain in saver.catalog.pending_drains("pfs", limit=10)} == {new.publication_id}
        saver.settle("nvme")
        assert saver.catalog.count()["superseded"] == 0

    def test_removing_takes_the_superseded_versions_too(self, saver: Saver) -> None:
        saver.save("/run/1")
        saver.settle_all()
        saver.save("/run/1", replace=True)
        assert len(saver.catalog.remove("/run/1")) == 2
        saver.work_off()
        assert saver.catalog.count() == {"publications": 0, "superseded": 0, "deleted": 0, "attempts": 0, "drains": 0}

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
        saver.catalog.request_drain(drain.object_id, "object")
        assert [item.tries for item in saver.catalog.pending_drains("object", limit=10)] == [1]

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
