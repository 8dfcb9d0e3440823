"""What every catalog must do when something is given another path."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ckptstore import records
from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Attachment, Kind
from ckptstore.errors import AlreadyExists, InvalidInput, NotFound, PathConflict
from tests.contract.catalog_contract import Saver


class MovingContract:
    def test_a_move_is_seen_at_the_new_path_only_and_keeps_the_object(self, saver: Saver, catalog: Catalog) -> None:
        published = saver.save("/a/x", kind=Kind.FILE)
        saver.settle_all()
        assert catalog.move("/a/x", "/b/c/y") == ["/b/c/y"]
        found = catalog.resolve("/b/c/y")
        assert found.publication_id == published.publication_id
        assert catalog.file("/b/c/y")[1].key.startswith("objects/a/x~")
        with pytest.raises(NotFound):
            catalog.entry("/a")
        assert [entry.path for entry in catalog.list_folder("/b/c")] == ["/b/c/y"]

    def test_a_move_there_and_back_is_told_as_a_change_of_anything(self, saver: Saver, catalog: Catalog) -> None:
        saver.save("/a")
        for source, target in (("/a", "/b"), ("/b", "/a")):
            before = catalog.namespace_sequence()
            catalog.move(source, target)
            assert catalog.changes_since(before).paths is None

    def test_a_folder_moves_with_all_below_it_and_nothing_beside(self, saver: Saver, catalog: Catalog) -> None:
        for path in ("/a/1", "/a/b/2", "/ab", "/a0"):
            saver.save(path)
        assert catalog.move("/a", "/c/d") == ["/c/d/1", "/c/d/b/2"]
        assert [entry.path for entry in catalog.list_folder("/")] == ["/a0", "/ab", "/c"]
        assert catalog.resolve("/c/d/b/2").path == "/c/d/b/2"
        assert catalog.resolve("/c/d/@latest").path == "/c/d/1"

    def test_a_move_into_the_parent_or_beside_it_keeps_the_folders_that_are_needed(self, saver: Saver, catalog: Catalog) -> None:
        saver.save("/a/b/x", kind=Kind.FILE)
        catalog.move("/a/b/x", "/a/x")
        assert [entry.path for entry in catalog.list_folder("/a")] == ["/a/x"]
        catalog.move("/a/x", "/a/y")
        assert [entry.path for entry in catalog.list_folder("/a")] == ["/a/y"]

    def test_what_is_at_the_target_is_replaced_only_when_that_is_asked_for(self, saver: Saver, catalog: Catalog) -> None:
        new, old = saver.save("/new", kind=Kind.FILE), saver.save("/old", kind=Kind.FILE)
        saver.settle_all()
        with pytest.raises(AlreadyExists):
            catalog.move("/new", "/old")
        assert catalog.resolve("/old").publication_id == old.publication_id
        catalog.move("/new", "/old", replace=True)
        assert catalog.resolve("/old").publication_id == new.publication_id
        assert not catalog.publication(old.publication_id).live

    def test_a_replaced_target_stays_until_the_moved_one_is_recorded_as_deep(self, saver: Saver, catalog: Catalog) -> None:
        saver.save("/new", kind=Kind.FILE)
        old = saver.save("/old", kind=Kind.FILE)
        saver.settle_all()
        catalog.move("/new", "/old", replace=True)
        saver.settle("nvme")
        assert catalog.count()["superseded"] == 1
        saver.settle("pfs")
        saver.settle("object")
        saver.work_off()
        with pytest.raises(NotFound):
            catalog.publication(old.publication_id)

    def test_each_record_says_the_new_path_before_the_tier_counts_again(self, saver: Saver, catalog: Catalog) -> None:
        published = saver.save("/a/x")
        saver.settle_all()
        catalog.move("/a/x", "/b")
        assert catalog.resolve("/b").durability == ()
        record = records.read_record(catalog.record(published.publication_id, tier="pfs"), subject="x")
        assert (record.header.path, record.header.stored_as) == ("/b", "/a/x")
        assert record.header.sequence > published.sequence
        assert [file.key for file in record.files()] == [file.key for file in catalog.files(published.publication_id)]
        saver.settle_all()
        assert catalog.resolve("/b").durability == ("nvme", "pfs", "object")

    def test_a_record_that_was_made_before_the_move_does_not_count(self, saver: Saver, catalog: Catalog) -> None:
        published = saver.save("/a")
        made_before = records.sequence_of(catalog.record(published.publication_id, tier="nvme"))
        catalog.move("/a", "/b")
        catalog.record_written(published.publication_id, "nvme", sequence=made_before)
        assert catalog.owed_records("nvme", limit=9) == [published.publication_id]
        assert catalog.resolve("/b").durability == ()

    def test_versions_that_were_replaced_go_along_and_stay_older(self, saver: Saver, catalog: Catalog) -> None:
        old = saver.save("/a")
        saver.settle_all()
        new = saver.save("/a", replace=True)
        catalog.move("/a", "/b")
        assert catalog.publication(old.publication_id).path == "/b"
        assert catalog.publication(old.publication_id).sequence < catalog.resolve("/b").sequence
        assert catalog.resolve("/b").publication_id == new.publication_id
        saver.settle_all()
        assert catalog.count()["superseded"] == 0

    def test_what_a_moved_checkpoint_referred_to_or_was_referred_by_stays(self, saver: Saver, catalog: Catalog) -> None:
        base = saver.save("/run/1")
        user = saver.save_referring("/run/2", base)
        saver.settle_all()
        catalog.move("/run", "/kept")
        saver.settle_all()
        catalog.remove("/kept/1")
        saver.work_off()
        record = records.read_record(catalog.record(user.publication_id, tier="object"), subject="x")
        (reference,) = record.references()
        assert reference.file.object_id == saver.object_of(base)
        assert record.header.version == 3

    @pytest.mark.parametrize(
        ("source", "target", "error"),
        [
            ("/no/where", "/x", NotFound),
            ("/run/1/rank-00000.safetensors", "/x", PathConflict),
            ("/file", "/run/1/x", PathConflict),
            ("/file", "/run", PathConflict),
            ("/run", "/file", AlreadyExists),
            ("/run", "/run/1/x", InvalidInput),
            ("/file", "/file", InvalidInput),
            ("/file", "/@latest", InvalidInput),
            ("/file", "/a/../b", InvalidInput),
            ("/run", "/" + "/".join(["x" * 199] * 4), InvalidInput),
            ("/run/1", "/" + "/".join(["x" * 198] * 4), InvalidInput),
        ],
    )
    def test_a_move_that_cannot_be_is_refused_and_changes_nothing(
        self, saver: Saver, catalog: Catalog, source: str, target: str, error: type[Exception]
    ) -> None:
        saver.save("/run/1")
        saver.save("/file", kind=Kind.FILE)
        with pytest.raises(error):
            catalog.move(source, target, replace=True)
        assert [entry.path for entry in catalog.list_folder("/")] == ["/file", "/run"]
        assert catalog.resolve("/run/1").live

    @pytest.mark.parametrize("source", ["/models/public", "/models"])
    def test_a_folder_with_attached_storage_in_it_stays_where_it_is(self, saver: Saver, catalog: Catalog, source: str) -> None:
        saver.save("/models/own")
        catalog.attach(Attachment("/models/public", "s3://bucket/models", 30.0))
        with pytest.raises(PathConflict, match="attached"):
            catalog.move(source, "/elsewhere")
        assert catalog.attached_over("/models/public") is not None
        assert saver.save("/models/next").sequence > catalog.resolve("/models/own").sequence

    def test_another_node_writes_the_record_of_its_own_tier(self, open_node: Callable[[str], Saver]) -> None:
        a, b = open_node("node-a"), open_node("node-b")
        published = a.save("/run/1", kind=Kind.FOLDER, names=["f"])
        a.settle_all()
        b.catalog.move("/run/1", "/run/2")
        assert b.catalog.owed_records("nvme", limit=9) == []
        assert a.catalog.owed_records("nvme", limit=9) == [published.publication_id]
        assert b.settle("pfs") == [published.publication_id]

    def test_a_folder_written_file_by_file_is_the_latest_once_its_metadata_is_renamed_in(self, saver: Saver, catalog: Catalog) -> None:
        saver.save("/run/1")
        for name in ("__0_0.distcp", ".metadata.tmp"):
            saver.save(f"/run/2/{name}", kind=Kind.FILE)
        assert catalog.resolve("/run/@latest").path == "/run/1"
        catalog.move("/run/2/.metadata.tmp", "/run/2/.metadata")
        found = catalog.resolve("/run/@latest")
        assert (found.path, found.kind) == ("/run/2", Kind.FOLDER)
        saver.save("/run/3")
        assert catalog.resolve("/run/@latest").path == "/run/3"
        catalog.remove("/run/3")
        catalog.remove("/run/2/.metadata")
        assert catalog.resolve("/run/@latest").path == "/run/1"

    def test_a_folder_written_file_by_file_counts_only_with_all_its_files_within_reach(self, open_node: Callable[[str], Saver]) -> None:
        a, b = open_node("node-a"), open_node("node-b")
        a.save("/run/1/__0_0.distcp", kind=Kind.FILE)
        b.save("/run/1/.metadata", kind=Kind.FILE)
        with pytest.raises(NotFound, match="within reach"):
            b.catalog.resolve("/run/@latest")
        a.settle_all()
        assert b.catalog.resolve("/run/@latest").path == "/run/1"
