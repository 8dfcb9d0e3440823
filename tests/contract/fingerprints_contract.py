"""What every catalog must do with the names that others give to an object's bytes."""

from __future__ import annotations

from ckptstore.catalog import Catalog
from ckptstore.catalog.fingerprints import Fingerprint
from tests.contract.catalog_contract import Saver


class FingerprintsContract:
    def test_a_fingerprint_is_kept_with_its_object_through_moves_until_that_is_gone(self, saver: Saver, catalog: Catalog) -> None:
        first, second = saver.object_of(saver.save("/a")), saver.object_of(saver.save("/b"))
        small, large = Fingerprint("a" * 64, "b" * 40), Fingerprint("c" * 64, None)
        assert catalog.fingerprints([first, second]) == {}
        catalog.set_fingerprint(first, small)
        catalog.set_fingerprint(second, large)
        catalog.set_fingerprint("0" * 32, small)  # of nobody's object: nothing
        catalog.move("/a", "/c")
        assert catalog.fingerprints([first, second, "0" * 32]) == {first: small, second: large}
        saver.settle_all()
        catalog.remove("/c")
        saver.work_off()
        assert catalog.fingerprints([first, second]) == {second: large}

    def test_an_unfinished_attempts_files_have_fingerprints_before_they_are_published(self, saver: Saver, catalog: Catalog) -> None:
        ticket = saver.join("/a")
        saver.store(ticket)
        object_id = ticket.objects[0].object_id
        catalog.set_fingerprint(object_id, Fingerprint("a" * 64, None))
        catalog.publish(ticket.attempt_id)
        assert set(catalog.fingerprints([object_id])) == {object_id}
