"""What every catalog must do with attachments: they and what is published exclude each other, at, above and below.

Mixed into the test class of each database, beside `CatalogContract`, whose fixtures it uses.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Attachment
from ckptstore.errors import AlreadyExists, CkptStoreError, InvalidInput, NotFound, PathConflict
from tests.contract.catalog_contract import Saver

MODELS = Attachment("/models/public", "s3://bucket/models", 30.0, credentials="readers", options='{"region":"x"}')


def names(catalog: Catalog, path: str) -> list[str]:
    return [entry.name for entry in catalog.list_folder(path)]


class AttachmentsContract:
    def test_an_attachment_is_told_as_it_was_made_to_every_node(self, open_node: Callable[[str], Saver]) -> None:
        here, there = open_node("node-a").catalog, open_node("node-b").catalog
        made = here.attach(MODELS)
        assert made.attached_at_s > 0
        assert made == Attachment(**{**MODELS.__dict__, "attached_at_s": made.attached_at_s})
        assert there.attachments() == [made]
        assert there.attached_over("/models/public/a/b") == there.attached_over("/models/public") == made
        assert there.attached_over("/models") is there.attached_over("/models/publicly") is None

    def test_it_is_listed_as_a_folder_and_takes_the_folders_above_it_along_when_it_goes(self, saver: Saver) -> None:
        saver.catalog.attach(MODELS)
        assert (names(saver.catalog, "/"), names(saver.catalog, "/models")) == (["models"], ["public"])
        assert saver.catalog.entry("/models/public").kind == "folder"
        assert saver.catalog.detach("/models/public").url == MODELS.url
        assert (names(saver.catalog, "/"), saver.catalog.attachments()) == ([], [])
        saver.save("/models/public/now")

    def test_who_remembers_the_tree_hears_that_it_came_and_went(self, saver: Saver) -> None:
        for change in (lambda: saver.catalog.attach(MODELS), lambda: saver.catalog.detach(MODELS.path)):
            before = saver.catalog.namespace_sequence()
            change()
            changes = saver.catalog.changes_since(before)
            assert changes.sequence > before
            assert changes.paths is None  # anything may be another now

    def test_attaching_the_same_again_changes_nothing_and_otherwise_is_refused(self, saver: Saver) -> None:
        made = saver.catalog.attach(MODELS)
        assert saver.catalog.attach(MODELS) == made
        with pytest.raises(AlreadyExists, match="s3://bucket/models"):
            saver.catalog.attach(Attachment("/models/public", "s3://bucket/others", 30.0))
        assert saver.catalog.attachments() == [made]

    @pytest.mark.parametrize("path", ["/models/public", "/models/public/below", "/models"])
    def test_nothing_is_attached_where_something_is_published_above_or_below(self, saver: Saver, path: str) -> None:
        saver.save(path if path != "/models" else "/models/public/deep/inside")
        taken = "/models/public" if path != "/models/public/below" else path.rpartition("/")[0]
        with pytest.raises((AlreadyExists, PathConflict)):
            saver.catalog.attach(Attachment(taken, "s3://b", 1.0))
        with pytest.raises((AlreadyExists, PathConflict)):
            saver.catalog.attach(Attachment("/models/public/deep", "s3://b", 1.0)) if path != "/models/public/below" else (
                saver.catalog.attach(Attachment("/models/public/below/x", "s3://b", 1.0))
            )
        assert saver.catalog.attachments() == []

    def test_attachments_do_not_nest(self, saver: Saver) -> None:
        saver.catalog.attach(MODELS)
        for path in ("/models", "/models/public/inner"):
            with pytest.raises(PathConflict):
                saver.catalog.attach(Attachment(path, "s3://b", 1.0))

    @pytest.mark.parametrize("path", ["/models/public", "/models/public/mine", "/models"])
    def test_nothing_is_published_at_it_below_it_or_as_a_file_above_it(self, saver: Saver, path: str) -> None:
        saver.catalog.attach(MODELS)
        with pytest.raises(PathConflict, match="entries" if path == "/models" else "attached from s3://bucket/models"):
            saver.save(path)
        with pytest.raises(PathConflict):
            saver.save(path, replace=True)
        assert saver.save("/models/mine").live

    def test_what_was_being_saved_there_is_aborted_when_it_would_become_visible(self, saver: Saver) -> None:
        ticket = saver.join("/models/public/mine")
        saver.catalog.attach(MODELS)
        assert saver.store(ticket)
        with pytest.raises(PathConflict, match="attached"):
            saver.catalog.publish(ticket.attempt_id)
        assert saver.catalog.attempt(ticket.attempt_id).state == "aborted"

    def test_nothing_attached_is_removed_or_moved_nor_moved_into(self, saver: Saver) -> None:
        saver.catalog.attach(MODELS)
        saver.save("/models/mine")
        for path, recursive in (("/models/public", False), ("/models/public", True), ("/models/public/x", False), ("/models", True)):
            with pytest.raises(PathConflict, match="attached"):
                saver.catalog.remove(path, recursive=recursive)
        for source, target in (("/models", "/others"), ("/models/public", "/others"), ("/models/mine", "/models/public/mine")):
            with pytest.raises(PathConflict, match="attached"):
                saver.catalog.move(source, target)
        saver.catalog.remove("/models/mine")
        assert names(saver.catalog, "/models") == ["public"]

    def test_only_what_is_attached_at_the_very_path_is_detached(self, saver: Saver) -> None:
        saver.catalog.attach(MODELS)
        for path in ("/models", "/models/public/x", "/other"):
            with pytest.raises(NotFound):
                saver.catalog.detach(path)
        for path in ("/", "models", "/models/../x", "/@latest"):
            with pytest.raises(InvalidInput):
                saver.catalog.attach(Attachment(path, "s3://b", 1.0))
        assert len(saver.catalog.attachments()) == 1

    def test_of_those_who_attach_and_save_at_once_one_wins(self, open_node: Callable[[str], Saver]) -> None:
        savers = [open_node(f"node-{number}") for number in range(4)]

        def attach(saver: Saver) -> bool:
            try:
                saver.catalog.attach(Attachment("/race/here", f"s3://{saver.catalog.node}", 1.0))
            except CkptStoreError:
                return False
            return True

        def save(saver: Saver) -> bool:
            try:
                saver.save("/race/here/mine")
            except CkptStoreError:
                return False
            return True

        with ThreadPoolExecutor(4) as executor:
            jobs = [executor.submit(attach if number % 2 else save, saver) for number, saver in enumerate(savers)]
            won = [job.result() for job in jobs]
        attached = savers[0].catalog.attachments()
        assert len(attached) == sum(won[1::2]) <= 1
        assert bool(attached) != any(won[0::2])
