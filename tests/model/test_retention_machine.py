"""Policies of folders and tiers, holds and the trash against a plain model, with the daemon dying between any two steps of carrying a
decision out, of having something back, and of freeing space.

The catalog is a real one, and what decides and acts is the daemon's own `Keeper`; bytes play no part, but for the keys that chores delete
and drains write. Whatever the policies say and whenever it dies: what is held stays, in all tiers that have it; the newest checkpoint
that a tier has stays in it; nothing loses its last tier, nor the objects that it refers to, and where it counts as durable, bytes and
record lie; what went into the trash can be had back until its time is over.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Act, Chore, Join, Kind, Publication
from ckptstore.errors import AlreadyExists, NotFound
from ckptstore.paths import new_id
from ckptstore.retention import BestN, EveryNSeconds, EveryNSteps, Keep, LatestN, Within
from ckptstore.retention_messages import SetRetention
from ckptstore_server.judging import Judging
from ckptstore_server.retention import Keeper
from tests.contract.catalog_contract import TIERS, Saver

FOLDER = "/run"


class Died(Exception):
    """The daemon, before or after a call of the catalog."""


#: The calls of the catalog by which a Keeper changes something.
CHANGES = ("discard", "leave_tier", "return_to_tier", "undo", "empty_trash")


@dataclass
class Tier:
    name: str


class StandInNode:
    """What a Keeper needs of its node; it may die after so many changes, before the next one's call or behind it."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.durable = [Tier(row.name) for row in TIERS]
        self.board = self
        self.lives: int | None = None
        self.last_call = False

    def announce(self) -> None:
        """Nobody waits."""

    insist = property(lambda self: self.query)

    async def query(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if getattr(call, "__name__", "") in CHANGES and self.lives is not None:
            if self.lives == 0:
                if self.last_call:
                    call(*args, **options)
                raise Died
            self.lives -= 1
        return call(*args, **options)


class Bytes(Saver):
    """A Saver that remembers what it has put into tiers: objects by id, and records by publication."""

    def __init__(self, catalog: Catalog, there: set[tuple[str, str]]) -> None:
        super().__init__(catalog)
        self.there = there  # (tier, id)

    def publish(self, path: str, number: int, *bases: Publication) -> Publication:
        """A checkpoint with that step, which uses tensors of the others' first files."""
        metadata = f'{{"a": {number % 3}}}'
        catalog, token = self.catalog, new_id()
        ticket = catalog.join(Join(path, token, 0, 0, 1, Kind.CHECKPOINT, catalog.node, token, False, number, metadata), ["part"])
        self.refer(ticket, *bases)
        assert self.store(ticket)
        self.there.add(("nvme", ticket.objects[0].object_id))
        skips = asyncio.run(Judging(StandInNode(catalog)).skips(catalog.attempt(ticket.attempt_id)))  # type: ignore[arg-type]
        return catalog.publish(ticket.attempt_id, skips=skips)

    def drain(self, tier: str, limit: int = 10_000) -> int:
        due = self.catalog.pending_drains(tier, limit=limit)
        for drain in due:
            assert any(not replica.damaged for replica in self.catalog.replicas(drain.object_id)), "there is nothing to copy it from"
            if self.catalog.add_replica(drain.object_id, tier):
                self.there.add((tier, drain.object_id))
        return len(due)

    def settle(self, tier: str) -> list[str]:
        written = super().settle(tier)
        self.there |= {(tier, publication_id) for publication_id in written}
        return written

    def do(self, chore: Chore) -> None:
        if chore.act is Act.DELETE_OBJECT:
            self.there.discard((chore.tier, str(chore.object_id)))
        if chore.act is Act.DELETE_RECORD:
            self.there.discard((chore.tier, str(chore.publication_id)))

    def work_off(self, *tiers: str) -> list[Chore]:
        done = super().work_off(*tiers)
        for chore in done:
            self.do(chore)
        return done

    def work_off_until_death(self, lives: int) -> None:
        """Some chores are done; of the last one the catalog never hears."""
        for chore in [chore for tier in ORDER for chore in self.catalog.chores(tier, grace_s=0.0, limit=3)][: lives + 1]:
            self.do(chore)
            if lives:
                self.catalog.chore_done(chore)
            lives -= 1


ORDER = [tier.name for tier in TIERS]
POLICIES = st.lists(
    st.one_of(
        st.builds(LatestN, n=st.integers(1, 3)),
        st.builds(EveryNSteps, steps=st.integers(2, 4)),
        st.builds(BestN, n=st.integers(1, 2), metric=st.just("a")),
        st.builds(Keep, steps=st.lists(st.integers(0, 9), min_size=1, max_size=2).map(tuple)),
        st.builds(EveryNSeconds, seconds=st.sampled_from([1e-6, 0.01, 3600.0])),
        st.builds(Within, seconds=st.sampled_from([1e-6, 3600.0])),
    ),
    min_size=1,
    max_size=2,
)


#: Of the daemon, at its next change of the catalog.
DEATHS = st.sampled_from([None, "before", "behind"])


def depth(found: Publication) -> int:
    """Of the deepest tier that holds all of it; -1: none does."""
    return max(map(ORDER.index, found.durability), default=-1)


class Retention(RuleBasedStateMachine):
    saved = Bundle("saved")

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="retention-"))
        self.saver = Bytes(self._opened(), set())
        self.number = 0
        self.present: dict[str, str] = {}  # path → publication id
        self.trashed: list[tuple[str, str]] = []  # (path, publication id), what was thrown away last comes last
        self.held: set[str] = set()
        self.refers: dict[str, set[str]] = {}

    def _opened(self) -> Catalog:
        catalog = Catalog.open(f"sqlite:///{self.home / 'catalog.sqlite3'}", node="node-a")
        catalog.register_tiers(TIERS)
        return catalog

    def start_again(self) -> None:
        self.catalog.close()
        self.saver = Bytes(self._opened(), self.saver.there)

    def teardown(self) -> None:
        self.saver.catalog.close()
        shutil.rmtree(self.home)

    @property
    def catalog(self) -> Catalog:
        return self.saver.catalog

    def keeper(self) -> tuple[Keeper, StandInNode]:
        node = StandInNode(self.catalog)
        return Keeper(node), node  # type: ignore[arg-type]

    def checkpoints(self) -> dict[str, Publication]:
        return {found.path: found for found in self.catalog.checkpoints(FOLDER)}

    @rule(target=saved, refer=st.booleans(), drained=st.booleans())
    def save(self, refer: bool, drained: bool) -> str:
        self.number += 1
        path = f"{FOLDER}/{self.number:04}"
        bases = [self.catalog.resolve(max(self.present))] if refer and self.present else []
        near = {replica.tier for base in bases for replica in self.catalog.replicas(self.saver.object_of(base)) if not replica.damaged}
        bases = [base for base in bases if base.publication_id not in self.refers and "nvme" in near]
        published = self.saver.publish(path, self.number, *bases)
        if bases:
            self.refers[published.publication_id] = {self.saver.object_of(base) for base in bases}
        self.present[path] = published.publication_id
        if drained:
            self.saver.settle_all()
        return path

    @rule()
    def drains_catch_up(self) -> None:
        self.saver.settle_all()

    @rule(tier=st.sampled_from(ORDER), limit=st.integers(0, 3))
    def some_drains(self, tier: str, limit: int) -> None:
        self.saver.drain(tier, limit)
        self.saver.settle(tier)

    @rule()
    def evict(self) -> None:
        for candidate in self.catalog.eviction_candidates("nvme", limit=2):
            self.catalog.drop_replica(candidate.object_id, "nvme")

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """One replica of several."""
        path = data.draw(st.sampled_from(sorted(self.present)))
        object_id = self.saver.object_of(self.catalog.resolve(path))
        good = [replica.tier for replica in self.catalog.replicas(object_id) if not replica.damaged]
        if len(good) > 1:
            self.catalog.mark_damaged(object_id, data.draw(st.sampled_from(good)))

    @rule(policies=POLICIES, tier=st.sampled_from(["", *ORDER]), trash_s=st.sampled_from([0.0, 1000.0]), dry_run=st.booleans())
    def keep(self, policies: list[Any], tier: str, trash_s: float, dry_run: bool) -> None:
        keeper, _ = self.keeper()
        before = self.catalog.retentions()
        wanted = SetRetention(path=FOLDER, policies=tuple(policies), tier=tier, trash_s=trash_s)
        plan = asyncio.run(keeper.set(wanted, dry_run=dry_run))
        assert {judged.path for judged in plan.checkpoints} == set(self.present)
        assert (self.catalog.retentions() == before) or not dry_run

    @rule(tier=st.one_of(st.none(), st.sampled_from(["", *ORDER])))
    def keep_everything(self, tier: str | None) -> None:
        with suppress(NotFound):
            self.catalog.clear_retention(FOLDER, tier)

    @rule(lives=st.one_of(st.none(), st.integers(0, 3)), deleted=st.booleans())
    def apply(self, lives: int | None, deleted: bool) -> None:
        before = self.checkpoints()
        keeper, node = self.keeper()
        node.lives = lives
        try:
            asyncio.run(keeper.apply())
        except Died:
            self.start_again()
        now = self.checkpoints()
        self.present = {path: found.publication_id for path, found in now.items()}
        assert self.present.items() <= {path: found.publication_id for path, found in before.items()}.items(), "out of nowhere"
        gone = {path: found for path, found in before.items() if path not in now}
        for path, found in gone.items():
            assert found.publication_id not in self.held, f"{path} was held"
            as_safe = [newer for newer in now.values() if newer.opened > found.opened and depth(newer) >= max(0, depth(found))]
            assert as_safe, f"{path} went though nothing newer was as safe"
        self._check_tiers(before, now)
        if deleted:
            self.saver.work_off()
        lying = {trashed.publication.publication_id for trashed in self.catalog.trashed()}
        self.trashed += sorted((path, found.publication_id) for path, found in gone.items() if found.publication_id in lying)

    def _check_tiers(self, before: dict[str, Publication], now: dict[str, Publication]) -> None:
        """What is still there, in the tiers that hold all of it."""
        for path, found in now.items():
            left = {*before[path].durability} - {*found.durability}
            assert found.durability or not before[path].durability, f"{path} lost its last tier"
            assert not left or found.publication_id not in self.held, f"{path} was held, and left {left}"
        for tier in ORDER:
            as_deep = [found for found in before.values() if depth(found) >= ORDER.index(tier)]
            if as_deep and tier in as_deep[-1].durability:
                newest = now.get(as_deep[-1].path)
                assert newest is not None, f"the newest in {tier} went"
                assert tier in newest.durability, f"the newest in {tier} left it"

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

    @rule(path=saved, death=DEATHS)
    def undo(self, path: str, death: str | None) -> None:
        keeper, node = self.keeper()
        node.lives, node.last_call = None if death is None else 0, death == "behind"
        lying = [found for where, found in self.trashed if where == path]
        try:
            asyncio.run(keeper.undo(path))
        except Died:
            self.start_again()
            if death == "before":
                return
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

    @rule(everything=st.booleans(), death=DEATHS, lives=st.one_of(st.none(), st.integers(0, 4)))
    def gc(self, everything: bool, death: str | None, lives: int | None) -> None:
        """The trash is emptied, then space is freed; either may end halfway, and what is left is done the next time."""
        keeper, node = self.keeper()
        node.lives, node.last_call = None if death is None else 0, death == "behind"
        try:
            removed = asyncio.run(keeper.empty_trash(everything=everything)).removed
            assert len(removed) == (len(self.trashed) if everything else 0)
        except Died:
            self.start_again()
        if everything and death != "before":
            self.trashed = []
        if lives is None:
            self.saver.work_off()
        else:
            self.saver.work_off_until_death(lives)
            self.start_again()

    @invariant()
    def what_should_be_there_is(self) -> None:
        assert {found.path: found.publication_id for found in self.catalog.checkpoints(FOLDER)} == self.present
        assert {hold.publication_id for hold in self.catalog.holds()} == self.held
        assert sorted((trashed.path, trashed.publication.publication_id) for trashed in self.catalog.trashed()) == sorted(self.trashed)

    @invariant()
    def what_the_catalog_says_of_tiers_is_so(self) -> None:
        unkept = self.catalog.unkept([*self.present.values()])
        for publication_id in {*self.present.values(), *(found for _, found in self.trashed)}:
            published = self.catalog.publication(publication_id)
            needed = {self.saver.object_of(published), *self.refers.get(publication_id, ())}
            for object_id in needed:
                good = {replica.tier for replica in self.catalog.replicas(object_id) if not replica.damaged}
                assert good, f"an object that {published.path} needs is nowhere"
                assert good <= {tier for tier, name in self.saver.there if name == object_id}, "a replica has no bytes"
                assert good >= {*published.durability}, f"{published.path} counts as whole where it is not"
            for tier in published.durability:
                assert (tier, publication_id) in self.saver.there, f"{published.path} has no record in {tier}"
                assert tier not in unkept.get(publication_id, ()), f"{published.path} counts in {tier}, from which it is kept"


def test_nothing_goes_that_should_stay_and_what_was_thrown_away_can_be_had_back() -> None:
    run_state_machine_as_test(Retention, settings=settings(max_examples=25, stateful_step_count=40, deadline=None))
