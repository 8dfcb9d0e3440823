"""Carrying out what folders' policies decide: look, decide, throw away; and empty the trash when its time has come.

The decision is made on what the catalog says now, and every single step is tested again in its own transaction (`Catalog.discard`), so
any node's daemon may do it, at any time, also beside another one, and a crash between two steps only delays the rest. It is looked at
when something was published or became safer, and every `RETENTION_TURN_S` of upkeep.
"""

from __future__ import annotations

import json

from ckptstore.catalog.model import Hold, Publication, Retention, Trashed
from ckptstore.retention import Candidate, Decision, decide, read_policies, write_policies
from ckptstore.retention_messages import (
    HoldInfo,
    HoldList,
    HoldPath,
    Judged,
    Restored,
    RetentionInfo,
    RetentionList,
    RetentionPlan,
    SetRetention,
    TrashedInfo,
    TrashList,
)
from ckptstore.wire import Removed
from ckptstore_server.node import Node


class Keeper:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._catalog = node.catalog

    # --- policies ----------------------------------------------------------------------------------------------------------------

    async def set(self, wanted: SetRetention, *, dry_run: bool) -> RetentionPlan:
        """What the policies say of the folder now. They hold from now on, unless it is a dry run."""
        retention = Retention(wanted.path, write_policies(wanted.policies), wanted.tier, wanted.trash_s)
        if dry_run:
            retention = self._catalog.checked_retention(retention)
        else:
            retention = await self._node.query(self._catalog.set_retention, retention)
            self._node.board.announce()
        decision, checkpoints = await self._judge(retention)
        going = {*decision.going}
        judged = [
            Judged(
                path=found.path,
                step=found.step,
                size_bytes=found.size_bytes,
                goes=found.path in going,
                why=decision.staying.get(found.path, "no policy keeps it"),
            )
            for found in checkpoints
        ]
        return RetentionPlan(path=retention.path, tier=retention.tier or self._node.durable[-1].name, checkpoints=judged)

    async def clear(self, path: str) -> RetentionInfo:
        return _retention_info(await self._node.query(self._catalog.clear_retention, path))

    async def all(self) -> RetentionList:
        return RetentionList(folders=[_retention_info(retention) for retention in await self._node.query(self._catalog.retentions)])

    async def apply(self) -> None:
        """One turn: what may go, goes."""
        for retention in await self._node.query(self._catalog.retentions):
            decision, checkpoints = await self._judge(retention)
            ids = {found.path: found.publication_id for found in checkpoints}
            for path in decision.going:
                assert decision.last_good is not None
                because_of = ids[decision.last_good]
                await self._node.query(
                    self._catalog.discard, ids[path], because_of=because_of, tier=retention.tier, trash_s=retention.trash_s
                )
            if decision.going:
                self._node.board.announce()

    async def _judge(self, retention: Retention) -> tuple[Decision, list[Publication]]:
        checkpoints = await self._node.query(lambda: list(self._catalog.checkpoints(retention.path)))
        held = {hold.publication_id for hold in await self._node.query(self._catalog.holds)}
        candidates = [
            Candidate(
                path=found.path,
                opened=found.opened,
                opened_at_s=found.opened_at_s,
                step=found.step,
                metadata=json.loads(found.metadata),
                safe=self._catalog.is_safe(found, retention.tier),
                held=found.publication_id in held,
            )
            for found in checkpoints
        ]
        return decide(read_policies(retention.policies), candidates), checkpoints

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
