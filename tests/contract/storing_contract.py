"""What every catalog must do when many objects of an attempt are stored at once."""

from __future__ import annotations

import pytest

from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Act, AttemptState, Kind, NewObject
from ckptstore.errors import InvalidInput
from ckptstore_tiers.checksums import BlockDigests
from tests.contract.catalog_contract import DIGESTS, Saver

OTHER = BlockDigests.of(b"other bytes")
NAMES = ["a/1", "a/2", "b"]


class StoringContract:
    def _added(self, saver: Saver, catalog: Catalog) -> tuple[str, tuple[NewObject, ...]]:
        attempt_id = saver.join("/folder", kind=Kind.FOLDER, names=[]).attempt_id
        return attempt_id, catalog.add_objects(attempt_id, 0, NAMES)

    def test_all_are_noted_together_and_published(self, saver: Saver, catalog: Catalog) -> None:
        attempt_id, added = self._added(saver, catalog)
        stored = {item.object_id: (OTHER if item.name == "b" else DIGESTS, 7 if item.name == "b" else None) for item in added}
        for _ in range(2):  # it may be said again: the answer to the first may have been lost
            assert catalog.objects_stored(attempt_id, stored, tier="nvme")
        catalog.rank_stored(attempt_id, 0)
        published = catalog.publish(attempt_id)
        assert published.file_count == len(NAMES) and published.size_bytes == 2 * DIGESTS.size_bytes + OTHER.size_bytes
        files = {file.object_id: file for file in catalog.attempt_files(attempt_id, with_blocks=True)}
        for object_id, (digests, stored_bytes) in stored.items():
            (replica,) = catalog.replicas(object_id)
            assert (replica.tier, replica.damaged, replica.stored_bytes) == ("nvme", False, stored_bytes)
            assert (files[object_id].root, files[object_id].blocks) == (digests.root, digests.blocks)

    def test_what_comes_after_the_end_is_nobodys_and_owed_a_deletion(self, saver: Saver, catalog: Catalog) -> None:
        attempt_id, added = self._added(saver, catalog)
        catalog.abort(attempt_id, "given up")
        assert not catalog.objects_stored(attempt_id, {item.object_id: (DIGESTS, None) for item in added}, tier="nvme")
        assert catalog.attempt(attempt_id).state is AttemptState.ABORTED
        assert all(catalog.replicas(item.object_id) == [] for item in added)
        owed = {chore.object_id for chore in catalog.chores("nvme", grace_s=0, limit=99) if chore.act is Act.DELETE_OBJECT}
        assert owed == {item.object_id for item in added}

    def test_other_bytes_or_an_object_of_another_attempt_are_refused_and_none_is_noted(self, saver: Saver, catalog: Catalog) -> None:
        attempt_id, added = self._added(saver, catalog)
        first, second, third = (item.object_id for item in added)
        assert catalog.objects_stored(attempt_id, {first: (DIGESTS, None)}, tier="nvme")
        stranger = saver.join("/else", names=["x"]).objects[0].object_id
        for wrong in (first, stranger):
            with pytest.raises(InvalidInput):
                catalog.objects_stored(attempt_id, {second: (DIGESTS, None), wrong: (OTHER, None)}, tier="nvme")
            assert catalog.replicas(second) == []
        assert catalog.objects_stored(attempt_id, {second: (DIGESTS, None), third: (OTHER, None)}, tier="nvme")
