"""What every catalog must tell of changes: every one of them, and by path where it is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Attachment, Kind
from tests.contract.catalog_contract import Saver


class ChangesContract:
    def test_what_was_published_since_is_told_by_path(self, saver: Saver, catalog: Catalog) -> None:
        saver.save("/before")
        seen = catalog.namespace_sequence()
        assert catalog.changes_since(seen).paths == ()
        saver.save("/run/1")
        saver.save("/run/1%_", kind=Kind.FILE)
        told = catalog.changes_since(seen)
        assert sorted(told.paths or ()) == ["/run/1", "/run/1%_"]
        assert told.sequence == catalog.namespace_sequence() > seen

    def test_a_replaced_path_is_told(self, saver: Saver, catalog: Catalog) -> None:
        saver.save("/file", kind=Kind.FILE)
        seen = catalog.namespace_sequence()
        saver.save("/file", kind=Kind.FILE, replace=True)
        assert catalog.changes_since(seen).paths == ("/file",)

    @pytest.mark.parametrize(
        "change",
        [
            lambda catalog: catalog.remove("/a/x"),
            lambda catalog: catalog.move("/a/x", "/b/y"),
            lambda catalog: catalog.attach(Attachment("/attached", "file:///somewhere", 30.0, True, None, "{}")),
        ],
        ids=["remove", "move", "attach"],
    )
    def test_what_leaves_no_path_is_told_as_a_change_of_anything(
        self, saver: Saver, catalog: Catalog, change: Callable[[Catalog], object]
    ) -> None:
        saver.save("/a/x", kind=Kind.FILE)
        seen = catalog.namespace_sequence()
        saver.save("/beside")
        change(catalog)
        told = catalog.changes_since(seen)
        assert told.paths is None and told.sequence > seen + 1

    def test_one_who_was_away_for_long_or_saw_another_catalog_is_told_to_look_at_everything(self, saver: Saver, catalog: Catalog) -> None:
        saver.save("/a")
        assert catalog.changes_since(catalog.namespace_sequence() + 5).paths is None
        assert catalog.changes_since(catalog.namespace_sequence() - 100_000).paths is None
