"""What do a folder's policies say of its checkpoints now, and of one that is about to be published?

Reads the catalog and decides nothing by itself: that is `ckptstore.tier_retention`'s. What it says was true a moment ago; whoever acts
on it has it tested again in the transaction that does (`Catalog.discard`, `Catalog.leave_tier`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ckptstore.catalog.model import AttemptView, Kind, Publication, Retention
from ckptstore.errors import InvalidInput
from ckptstore.paths import ancestors, parent_and_name
from ckptstore.retention import Candidate, read_policies
from ckptstore.tier_retention import Fate, Rule, Standing, judge
from ckptstore_server.node import Node


@dataclass(frozen=True)
class Judgement:
    """The fates of a folder's checkpoints, oldest first, and the checkpoints by path."""

    fates: Sequence[Fate]
    found: dict[str, Publication]
    unkept: dict[str, frozenset[str]]


class Judging:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._catalog = node.catalog

    async def folder(self, path: str, said: Sequence[Retention]) -> Judgement:
        """By what was said of the folder and its tiers."""
        found = await self._node.query(lambda: list(self._catalog.checkpoints(path)))
        unkept = await self._node.query(self._catalog.unkept, [one.publication_id for one in found])
        # What holds a file holds the folder that it was written into, if that is a checkpoint.
        held = {place for hold in await self._node.query(self._catalog.holds) for place in (hold.path, *ancestors(hold.path))}
        now_s = await self._node.query(self._catalog.clock_s)
        standings = [
            Standing(
                _candidate(one, one.opened_at_s, now_s, held=one.path in held),
                one.durability,
                unkept.get(one.publication_id, frozenset()),
            )
            for one in found
        ]
        return Judgement(self._judge(said, standings), {one.path: one for one in found}, unkept)

    async def skips(self, view: AttemptView) -> tuple[str, ...]:
        """The tiers into which a checkpoint that is about to be published is not to be drained."""
        folder, _ = parent_and_name(view.path)
        said = await self._node.insist(self._catalog.retentions, folder) if view.kind is Kind.CHECKPOINT else []
        if not any(one.tier for one in said):
            return ()
        now_s = await self._node.insist(self._catalog.clock_s)
        others = await self._node.insist(lambda: list(self._catalog.checkpoints(folder)))
        standings = [Standing(_candidate(one, one.opened_at_s, now_s), one.durability) for one in others if one.path != view.path]
        standings.append(Standing(_candidate(view, view.opened_at_s, now_s)))
        return next(fate.skips for fate in self._judge(said, standings) if fate.path == view.path)

    def _judge(self, said: Sequence[Retention], standings: Sequence[Standing]) -> list[Fate]:
        rules = {one.tier: Rule(read_policies(one.policies), one.safe_in) for one in said}
        return judge(rules, [handle.name for handle in self._node.durable], standings)


async def refuse_never(node: Node, publication: Publication, tier: str) -> None:
    """InvalidInput if a publication never comes into a tier, nor into a deeper one, because of policies."""
    order = [handle.name for handle in node.durable]
    if tier not in order or node.is_as_safe_as(tier, publication.durability):
        return
    unkept = (await node.query(node.catalog.unkept, [publication.publication_id])).get(publication.publication_id, frozenset())
    if unkept.issuperset(order[order.index(tier) :]):
        where = ", ".join(publication.durability) or "no tier yet"
        raise InvalidInput(
            f"no policy keeps it in {tier}: it never comes there (it is in {where})",
            operation="wait",
            subject=publication.path,
            tier=tier,
            hint=f"see ckptstore keep {parent_and_name(publication.path)[0]} --dry-run",
        )


def _candidate(found: Publication | AttemptView, opened_at_s: float, now_s: float, *, held: bool = False) -> Candidate:
    metadata = json.loads(found.metadata)
    return Candidate(found.path, found.opened, opened_at_s, found.step, metadata, safe=False, held=held, age_s=now_s - opened_at_s)
