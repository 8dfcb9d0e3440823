"""Carrying out what folders' policies decide: look, decide, throw away or take out of a tier; and empty the trash when its time has come.

The decision is made on what the catalog says now, and every single step is tested again in its own transaction (`Catalog.discard`,
`Catalog.leave_tier`), so any node's daemon may do it, at any time, also beside another one, and a crash between two steps only delays
the rest. It is looked at when something was published or became safer, and every `RETENTION_TURN_S` of upkeep. A checkpoint that
cannot go holds up no other: `status` tells of it, once for each reason.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from ckptstore.catalog.model import Hold, Kind, Retention, Trashed
from ckptstore.errors import CatalogUnavailable, CkptStoreError
from ckptstore.failpoints import declare, failpoint
from ckptstore.retention import NOT_YET, read_policies, write_policies
from ckptstore.retention_messages import (
    HoldInfo,
    HoldList,
    HoldPath,
    InTier,
    Judged,
    Restored,
    RetentionInfo,
    RetentionList,
    RetentionPlan,
    SetRetention,
    TrashedInfo,
    TrashList,
)
from ckptstore.tier_retention import Fate
from ckptstore.wire import Removed
from ckptstore_server.judging import Judgement, Judging
from ckptstore_server.node import Node

BEFORE_DISCARD, AFTER_DISCARD = declare("retention.before_discard"), declare("retention.after_discard")
BEFORE_LEAVING, AFTER_LEAVING = declare("retention.before_leaving"), declare("retention.after_leaving")


class Keeper:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._catalog = node.catalog
        self._judging = Judging(node)
        self._stuck: dict[str, str] = {}  # publication → why it could not go, as `status` was told

    # --- policies ----------------------------------------------------------------------------------------------------------------

    async def set(self, wanted: SetRetention, *, dry_run: bool) -> RetentionPlan:
        """What the policies say of the folder now. They hold from now on, unless it is a dry run."""
        retention = Retention(wanted.path, write_policies(wanted.policies), wanted.tier, wanted.safe_in, wanted.trash_s)
        if dry_run:
            retention = self._catalog.checked_retention(retention)
        else:
            retention = await self._node.query(self._catalog.set_retention, retention)
            self._node.board.announce()
        others = [said for said in await self._node.query(self._catalog.retentions, retention.path) if said.tier != retention.tier]
        return await self._plan(retention.path, [*others, retention])

    async def set_configured(self) -> None:
        """At start: what the configuration says of folders holds, in place of what was said of them before.

        It is carried out before anything is drained: after a rebuild everything waits for that, also what no tier wants.
        """
        for kept in self._node.settings.keep:
            wanted = Retention(kept.folder, write_policies(kept.parsed), kept.tier, kept.safe_in, kept.trash)
            await self._node.query(self._catalog.set_retention, wanted)
        if self._node.settings.keep:
            await self.apply()

    async def _plan(self, path: str, said: Sequence[Retention]) -> RetentionPlan:
        judgement = await self._judging.folder(path, said)
        by_tier = any(one.tier for one in said)
        checkpoints = []
        for fate in judgement.fates:
            found = judgement.found[fate.path]
            tiers = [self._in_tier(fate, tier.name, judgement) for tier in self._node.durable] if by_tier else []
            checkpoints.append(
                Judged(path=found.path, step=found.step, size_bytes=found.size_bytes, goes=fate.goes, why=fate.why, tiers=tiers)
            )
        return RetentionPlan(path=path, checkpoints=checkpoints)

    def _in_tier(self, fate: Fate, tier: str, judgement: Judgement) -> InTier:
        found = judgement.found[fate.path]
        there = tier in found.durability
        if tier in fate.wanted:
            return InTier(tier=tier, fate="stays", why=fate.wanted[tier])
        if fate.goes or tier in fate.leaves:
            return InTier(tier=tier, fate="goes" if there else "absent")
        return InTier(tier=tier, fate="stays", why=NOT_YET) if there else InTier(tier=tier, fate="absent")

    async def clear(self, path: str, tier: str | None) -> RetentionList:
        cleared = await self._node.query(self._catalog.clear_retention, path, tier)
        self._node.board.announce()
        return RetentionList(folders=[_retention_info(retention) for retention in cleared])

    async def all(self) -> RetentionList:
        return RetentionList(folders=[_retention_info(retention) for retention in await self._node.query(self._catalog.retentions)])

    # --- carrying out ------------------------------------------------------------------------------------------------------------

    async def apply(self) -> None:
        """One turn: what may go, goes."""
        said: dict[str, list[Retention]] = {path: [] for path in await self._node.query(self._catalog.unkept_folders)}
        for retention in await self._node.query(self._catalog.retentions):
            said.setdefault(retention.path, []).append(retention)
        stuck: dict[str, str] = {}
        for path, rules in said.items():
            try:
                stuck |= await self._apply(path, rules)
            except CatalogUnavailable:
                raise  # that concerns all of them
            except CkptStoreError as error:
                stuck[path] = self._remarked(path, error)
        self._stuck = stuck

    async def _apply(self, path: str, said: Sequence[Retention]) -> dict[str, str]:
        """What of the folder could not go, and why."""
        judgement = await self._judging.folder(path, said)
        trash_s = max((one.trash_s for one in said), default=0.0)
        stuck: dict[str, str] = {}
        changed = False
        for fate in judgement.fates:
            publication_id = judgement.found[fate.path].publication_id
            try:
                for step in self._steps(fate, judgement, trash_s):
                    changed |= await step()
            except CatalogUnavailable:
                raise
            except CkptStoreError as error:
                stuck[publication_id] = self._remarked(publication_id, error)
        if changed:
            self._node.board.announce()
        return stuck

    def _steps(self, fate: Fate, judgement: Judgement, trash_s: float) -> list[Callable[[], Awaitable[bool]]]:
        """What is left to do about one checkpoint."""
        publication_id = judgement.found[fate.path].publication_id
        unkept = judgement.unkept.get(publication_id, frozenset())
        newer = {where: (judgement.found[path].publication_id, tier) for where, (path, tier) in fate.because_of.items()}

        async def discard() -> bool:
            failpoint(BEFORE_DISCARD)
            because_of, tier = newer[""]
            gone = await self._node.query(self._catalog.discard, publication_id, because_of=because_of, tier=tier, trash_s=trash_s)
            failpoint(AFTER_DISCARD)
            return gone is not None

        async def leave(tier: str) -> bool:
            failpoint(BEFORE_LEAVING)
            leave_tier = self._catalog.leave_tier
            left = await self._node.query(leave_tier, publication_id, tier, wanted_in=[*fate.wanted], because_of=newer.get(tier))
            failpoint(AFTER_LEAVING)
            return left

        async def come_back(tier: str) -> bool:
            return await self._node.query(self._catalog.return_to_tier, publication_id, tier)

        if fate.goes:
            return [discard]
        if judgement.found[fate.path].kind is Kind.FOLDER:
            return []  # what was written file by file stays in all tiers, or in none
        leaving = [partial(leave, tier) for tier in fate.leaves if tier not in unkept]
        return [*leaving, *(partial(come_back, tier) for tier in fate.returns)]

    def _remarked(self, subject: str, error: CkptStoreError) -> str:
        if self._stuck.get(subject) != str(error):
            self._node.remark("keep what policies want", error)
        return str(error)

    # --- holds -------------------------------------------------------------------------------------------------------------------

    async def hold(self, message: HoldPath) -> HoldInfo:
        return _hold_info(await self._node.query(self._catalog.hold, message.path, message.why))

    async def release(self, path: str) -> HoldInfo:
        released = await self._node.query(self._catalog.release, path)
        self._node.board.announce()
        return _hold_info(released)

    async def holds(self) -> HoldList:
        return HoldList(holds=[_hold_info(hold) for hold in await self._node.query(self._catalog.holds)])

    # --- the trash ---------------------------------------------------------------------------------------------------------------

    async def trashed(self) -> TrashList:
        return TrashList(trashed=[_trashed_info(trashed) for trashed in await self._node.query(self._catalog.trashed)])

    async def undo(self, path: str) -> Restored:
        back = await self._node.query(self._catalog.undo, path)
        self._node.board.announce()
        return Restored(path=back)

    async def empty_trash(self, *, everything: bool = False) -> Removed:
        removed = await self._node.query(self._catalog.empty_trash, all_of_it=everything)
        if removed:
            self._node.board.announce()
        return Removed(removed=[publication.path for publication in removed])


def _retention_info(retention: Retention) -> RetentionInfo:
    return RetentionInfo(
        path=retention.path,
        policies=read_policies(retention.policies),
        tier=retention.tier,
        safe_in=retention.safe_in,
        trash_s=retention.trash_s,
        set_at_s=retention.set_at_s,
    )


def _hold_info(hold: Hold) -> HoldInfo:
    return HoldInfo(path=hold.path, publication_id=hold.publication_id, why=hold.why, held_at_s=hold.held_at_s)


def _trashed_info(trashed: Trashed) -> TrashedInfo:
    found = trashed.publication
    return TrashedInfo(
        path=trashed.path,
        until_s=trashed.until_s,
        publication_id=found.publication_id,
        step=found.step,
        size_bytes=found.size_bytes,
    )
