"""What every catalog must do when something is said about a publication after its publish."""

from __future__ import annotations

import json

import pytest

from ckptstore import records
from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Publication
from ckptstore.errors import InvalidInput, NotFound
from ckptstore.tag_messages import MAX_METADATA_BYTES
from tests.contract.catalog_contract import TIERS, Saver


def said(publication: Publication) -> dict[str, object]:
    document: dict[str, object] = json.loads(publication.metadata)
    return document


class TaggingContract:
    def test_what_is_said_is_there_at_once_beside_what_was_and_can_be_taken_back(self, saver: Saver, catalog: Catalog) -> None:
        before = saver.save("/run/1")
        assert said(before) == {"a": 1}
        assert said(catalog.tag("/run/1", {"loss": 0.3, "good": True}, [])) == {"a": 1, "loss": 0.3, "good": True}
        assert said(catalog.tag("/run/1", {"loss": 0.2}, ["a", "never"])) == {"loss": 0.2, "good": True}
        after = catalog.resolve("/run/1")
        assert said(after) == {"loss": 0.2, "good": True}
        assert (after.publication_id, after.opened, after.published_sequence) == (before.publication_id, before.opened, before.sequence)
        assert after.sequence > before.sequence

    def test_saying_what_is_said_already_changes_nothing(self, saver: Saver, catalog: Catalog) -> None:
        before = saver.save("/run/1")
        assert catalog.tag("/run/1", {"a": 1}, ["never"]) == before

    def test_it_stays_as_durable_as_it_was_and_every_record_is_written_anew(self, saver: Saver, catalog: Catalog) -> None:
        published = saver.save("/run/1")
        saver.settle_all()
        everywhere = tuple(tier.name for tier in TIERS)
        assert catalog.tag("/run/1", {"loss": 0.3}, []).durability == everywhere
        assert catalog.recorded_tiers(published.publication_id) == []
        for tier in everywhere:
            assert catalog.owed_records(tier, limit=9) == [published.publication_id]
            record = records.read_record(catalog.record(published.publication_id, tier=tier), subject="x")
            assert json.loads(record.header.metadata) == {"a": 1, "loss": 0.3}
            assert record.header.sequence > published.sequence
        saver.settle_all()
        assert catalog.recorded_tiers(published.publication_id) == list(everywhere)
        assert catalog.resolve("/run/1").durability == everywhere

    def test_a_record_that_was_made_before_does_not_settle_it(self, saver: Saver, catalog: Catalog) -> None:
        published = saver.save("/run/1")
        made_before = records.sequence_of(catalog.record(published.publication_id, tier="nvme"))
        catalog.tag("/run/1", {"loss": 0.3}, [])
        catalog.record_written(published.publication_id, "nvme", sequence=made_before)
        assert catalog.owed_records("nvme", limit=9) == [published.publication_id]

    def test_a_move_after_it_is_a_move(self, saver: Saver, catalog: Catalog) -> None:
        saver.save("/run/1")
        catalog.tag("/run/1", {"loss": 0.3}, [])
        catalog.move("/run/1", "/kept")
        moved = catalog.resolve("/kept")
        assert said(moved) == {"a": 1, "loss": 0.3}
        assert moved.published_sequence == moved.sequence

    def test_what_is_too_much_or_is_not_there_is_refused_and_changes_nothing(self, saver: Saver, catalog: Catalog) -> None:
        saver.save("/run/1")
        with pytest.raises(InvalidInput, match=str(MAX_METADATA_BYTES)):
            catalog.tag("/run/1", {"text": "x" * MAX_METADATA_BYTES}, [])
        for path in ("/run", "/nothing", "/run/1/rank-00000.safetensors"):
            with pytest.raises(NotFound):
                catalog.tag(path, {"loss": 1}, [])
        assert said(catalog.resolve("/run/1")) == {"a": 1}
