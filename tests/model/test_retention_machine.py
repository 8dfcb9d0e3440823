"""Policies, holds and the trash against a plain model, with the daemon dying between any two steps of carrying a decision out.

The catalog is a real one, and what decides and acts is the daemon's own `Keeper`; bytes play no part. Whatever the policies say and
whenever it dies: what is held stays, the newest checkpoint that is safe stays, what others refer to keeps its objects, and what went into
the trash can be had back until its time is over.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Publication
from ckptstore.errors import AlreadyExists, NotFound
from ckptstore.retention import BestN, EveryNSteps, Keep, LatestN
from ckptstore.retention_messages import SetRetention
from ckptstore_server.retention import Keeper
from tests.contract.catalog_contract import TIERS, Saver

FOLDER = "/run"


class Died(Exception):
    """The daemon, before its next call of the catalog."""


@dataclass
class Tier:
    name: str


class StandInNode:
    """What a Keeper needs of its node; it may die after so many changes."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.durable = [Tier(row.name) for row in TIERS]
        self.board = self
        self.lives: int | None = None

    def announce(self) -> None:
        """Nobody waits."""

    async def query(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if getattr(call, "__name__", "") == "discard" and self.lives is not None:
            if self.lives == 0:
                raise Died
            self.lives -= 1
        return call(*args, **options)


POLICIES = st.lists(
    st.one_of(
        st.builds(LatestN, n=st.integers(1, 3)),
        st.builds(EveryNSteps, steps=st.integers(2, 4)),
        st.builds(BestN, n=st.integers(1, 2), metric=st.just("a")),
        st.builds(Keep, steps=st.lists(st.integers(0, 9), min_size=1, max_size=2).map(tuple)),
    ),
    min_size=1,
    max_size=2,
)


class Retention(RuleBasedStateMachine):
    saved = Bundle("saved")

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="retention-"))
        self.saver = Saver(self._opened())
        self.number = 0
        self.present: dict[str, str] = {}  # path → publication id
        self.trashed: list[tuple[str, str]] = []  # (path, publication id), what was thrown away last comes last
        self.held: set[str] = set()
        self.safe: dict[str, int] = {}  # publication id → its number
        self.order: dict[str, int] = {}
        self.refers: dict[str, set[str]] = {}

    def _opened(self) -> Catalog:
        catalog = Catalog.open(f"sqlite:///{self.home / 'catalog.sqlite3'}", node="node-a")
        catalog.register_tiers(TIERS)
        return catalog

    def teardown(self) -> None:
        self.saver.catalog.close()
        shutil.rmtree(self.home)

    @property
    def catalog(self) -> Catalog:
        return self.saver.catalog

    def keeper(self) -> tuple[Keeper, StandInNode]:
        node = StandInNode(self.catalog)
        return Keeper(node), node  # type: ignore[arg-type]

    def _noted(self, published: Publication) -> str:
        self.present[published.path] = published.publication_id
        self.order[published.publication_id] = self.number
        return published.path

    @rule(target=saved, refer=st.booleans())
    def save(self, refer: bool) -> str:
        self.number += 1
        path = f"{FOLDER}/{self.number:04}"
        bases = [self.catalog.resolve(max(self.present))] if refer and self.present else []
        bases = [base for base in bases if base.publication_id not in self.refers]
        if not bases:
            return self._noted(self.saver.save(path))
        published = self.saver.save_referring(path, *bases)
        self.refers[published.publication_id] = {self.saver.object_of(base) for base in bases}
        return self._noted(published)

    @rule()
    def drains_catch_up(self) -> None:
        self.saver.settle_all()
        self.safe |= {held: self.order[held] for held in self.present.values()}

    @rule(policies=POLICIES, trash_s=st.sampled_from([0.0, 1000.0]), dry_run=st.booleans())
    def keep(self, policies: list[Any], trash_s: float, dry_run: bool) -> None:
        keeper, _ = self.keeper()
        wanted = SetRetention(path=FOLDER, policies=tuple(policies), trash_s=trash_s)
        plan = asyncio.run(keeper.set(wanted, dry_run=dry_run))
        assert {judged.path for judged in plan.checkpoints} == set(self.present)

    @rule(lives=st.one_of(st.none(), st.integers(0, 3)))
    def apply(self, lives: int | None) -> None:
        before = dict(self.present)
        keeper, node = self.keeper()
        node.lives = lives
        try:
            asyncio.run(keeper.apply())
        except Died:
            self.catalog.close()
            self.saver = Saver(self._opened())
        now = {found.path: found.publication_id for found in self.catalog.checkpoints(FOLDER)}
        assert now.items() <= before.items(), "something came out of nowhere"
        gone = before.items() - now.items()
        newest_safe = max((self.safe[found] for found in before.values() if found in self.safe), default=0)
        for path, publication_id in gone:
            assert publication_id not in self.held, f"{path} was held"
            assert self.order[publication_id] < newest_safe, f"{path} went though nothing newer was safe"
        lying = {trashed.publication.publication_id for trashed in self.catalog.trashed()}
        self.trashed += sorted((path, found) for path, found in gone if found in lying)
        self.present = now

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.present)))
        self.catalog.hold(path, "kept")
        self.held.add(self.present[path])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(path for path, found in self.present.items() if found in self.held)))
        self.catalog.release(path)
        self.held.discard(self.present[path])

    @rule(path=saved)
    def undo(self, path: str) -> None:
        keeper, _ = self.keeper()
        lying = [found for where, found in self.trashed if where == path]
        try:
            asyncio.run(keeper.undo(path))
        except NotFound:
            assert not lying, "what was in the trash could not be had back"
            return
        except AlreadyExists:
            assert path in self.present
            return
        assert self.catalog.resolve(path).publication_id == lying[-1]
        self.trashed.remove((path, lying[-1]))
        self.present[path] = lying[-1]
        self.held.add(lying[-1])

    @rule(path=saved)
    def remove(self, path: str) -> None:
        try:
            self.catalog.remove(path)
        except NotFound:
            assert path not in self.present
        except AlreadyExists:
            assert self.present[path] in self.held
        else:
            assert self.present.pop(path) not in self.held

    @rule(everything=st.booleans())
    def gc(self, everything: bool) -> None:
        removed = self.catalog.empty_trash(all_of_it=everything)
        assert len(removed) == (len(self.trashed) if everything else 0)
        self.trashed = [] if everything else self.trashed
        self.saver.work_off()

    @invariant()
    def what_should_be_there_is(self) -> None:
        assert {found.path: found.publication_id for found in self.catalog.checkpoints(FOLDER)} == self.present
        assert {hold.publication_id for hold in self.catalog.holds()} == self.held
        assert sorted((trashed.path, trashed.publication.publication_id) for trashed in self.catalog.trashed()) == sorted(self.trashed)

    @invariant()
    def what_is_referred_to_has_its_objects(self) -> None:
        alive = {*self.present.values(), *(found for _, found in self.trashed)}
        for publication_id, object_ids in self.refers.items():
            if publication_id in alive:
                for object_id in object_ids:
                    assert self.catalog.replicas(object_id), f"an object that {publication_id} refers to is nowhere"


def test_nothing_goes_that_should_stay_and_what_was_thrown_away_can_be_had_back() -> None:
    run_state_machine_as_test(Retention, settings=settings(max_examples=20, stateful_step_count=30, deadline=None))
