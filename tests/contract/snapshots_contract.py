"""What every catalog must do about snapshots that running jobs are asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Kind
from ckptstore.errors import InvalidInput, NotFound
from tests.contract.catalog_contract import Saver

JOB, OTHER = "token-of-a-job", "token-of-another"


class SnapshotsContract:
    def test_a_request_is_answered_by_what_was_opened_after_it_in_its_folder(self, saver: Saver, catalog: Catalog) -> None:
        early = saver.join("/run/early")
        asked = catalog.ask_for_snapshot("/run", "why not", for_s=60.0)
        assert catalog.open_snapshot_requests() == [asked]
        saver.store(early)
        catalog.publish(early.attempt_id)
        for path, kind in (("/run/deep/1", Kind.CHECKPOINT), ("/other/1", Kind.CHECKPOINT), ("/run/file", Kind.FILE)):
            saver.save(path, kind=kind)
        assert catalog.open_snapshot_requests() == [asked]
        answer = saver.save("/run/1")
        saver.save("/run/2")
        found = catalog.snapshot_request(asked.request_id)
        assert (found.answered_by, found.is_open, found.why) == (answer.publication_id, False, "why not")
        assert catalog.open_snapshot_requests() == []

    def test_a_request_ends_with_its_time(self, catalog: Catalog) -> None:
        asked = catalog.ask_for_snapshot("/run", "", for_s=0.0)
        assert (asked.is_open, catalog.open_snapshot_requests()) == (False, [])
        assert catalog.hold_rank(asked.request_id, JOB, 0, 1, 5).closed
        assert catalog.agreement(asked.request_id, JOB).at_step is None

    def test_a_job_is_asked_to_end_once(self, catalog: Catalog) -> None:
        first = catalog.ask_for_snapshot("/run", "SIGTERM", token=JOB, for_s=60.0)
        assert catalog.ask_for_snapshot("/run", "SIGTERM again", token=JOB, for_s=60.0) == first
        assert catalog.ask_for_snapshot("/run", "SIGTERM", token=OTHER, for_s=60.0) != first
        assert len(catalog.open_snapshot_requests()) == 2

    def test_ranks_have_agreed_when_all_have_spoken_and_for_good(self, saver: Saver, open_node: Callable[[str], Saver]) -> None:
        here, there = saver.catalog, open_node("node-b").catalog
        asked = here.ask_for_snapshot("/run", "", for_s=60.0)
        assert here.hold_rank(asked.request_id, JOB, 0, 2, 10).at_step is None
        assert here.hold_rank(asked.request_id, JOB, 0, 2, 20).ranks == 1
        assert there.hold_rank(asked.request_id, JOB, 1, 2, 12).at_step == 20
        assert here.hold_rank(asked.request_id, JOB, 0, 2, 99).at_step == 20
        saver.save("/run/1")
        assert here.agreement(asked.request_id, JOB).at_step == 20

    def test_jobs_agree_apart_and_those_that_have_not_when_it_is_answered_never_do(self, saver: Saver, catalog: Catalog) -> None:
        asked = catalog.ask_for_snapshot("/run", "", for_s=60.0)
        catalog.hold_rank(asked.request_id, JOB, 0, 2, 10)
        catalog.hold_rank(asked.request_id, OTHER, 0, 1, 70)
        assert {found.token: found.at_step for found in catalog.agreements(asked.request_id)} == {JOB: None, OTHER: 70}
        saver.save("/run/1")
        late = catalog.hold_rank(asked.request_id, JOB, 1, 2, 11)
        assert (late.ranks, late.at_step, late.closed) == (1, None, True)

    def test_what_is_to_be_drained_first_goes_before_what_was_opened_earlier(self, saver: Saver, catalog: Catalog) -> None:
        earlier, base = saver.save("/run/1"), saver.save("/run/2")
        last = saver.save_referring("/run/3", base)
        first = {drain.publication_id for drain in catalog.pending_drains("pfs", limit=1)}
        assert first == {earlier.publication_id}
        assert catalog.drain_first(last.publication_id).path == "/run/3"
        wanted = [drain.publication_id for drain in catalog.pending_drains("pfs", limit=9)]
        assert {*wanted[:2]} == {base.publication_id, last.publication_id}
        assert wanted[2:] == [earlier.publication_id]
        with pytest.raises(NotFound):
            catalog.drain_first("0" * 32)

    def test_what_makes_no_sense_is_refused(self, catalog: Catalog) -> None:
        asked = catalog.ask_for_snapshot("/run", "", for_s=60.0)
        catalog.hold_rank(asked.request_id, JOB, 0, 2, 10)
        with pytest.raises(InvalidInput, match="2 ranks"):
            catalog.hold_rank(asked.request_id, JOB, 1, 3, 10)
        with pytest.raises(NotFound):
            catalog.hold_rank("0" * 32, JOB, 0, 1, 1)
        with pytest.raises(InvalidInput):
            catalog.ask_for_snapshot("relative", "", for_s=60.0)
