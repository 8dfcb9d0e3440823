"""What every catalog must do with paths: listing, latest, usage, removing, replacing.

Mixed into the test class of each database, beside `CatalogContract`, whose fixtures it uses.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ckptstore.catalog.model import AttemptState, Kind
from ckptstore.errors import AlreadyExists, NotFound, PathConflict
from tests.contract.catalog_contract import DIGESTS, Saver


class NamespaceContract:
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
