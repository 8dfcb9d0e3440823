"""In which tiers does each checkpoint of a folder stay, and which go as a whole? The folder's policies and those of its tiers together.

Policies may be bound to a tier: they say what stays in it. The folder's own go for the tiers that have none; a tier for which nobody has
said anything keeps everything. So every tier has one list of policies, and *wants* what these keep, and what is held.

    what no tier wants         goes as a whole, once something newer is at least as safe
    what only some want        is not brought into the others; of those that have it, it *leaves* them, once a tier that wants it, or a
                               deeper one, holds all of it, and something newer is safe in the tier that it leaves
    what a tier wants again    comes back into it (`returns`)

As in `decide`, the newest checkpoint that a tier (or a deeper one) holds whole stays where it is, whatever the policies say.

Pure: no clock, no catalog.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ckptstore.durability import is_as_safe_as
from ckptstore.retention import NOT_YET, Candidate, Decision, Policy, decide

#: Whose policies a rule has: those of the folder.
FOLDER = ""


@dataclass(frozen=True)
class Rule:
    """What somebody said of a folder, or of a tier in it."""

    policies: Sequence[Policy]
    safe_in: str = ""  # which tier must hold a newer checkpoint first; "": the tier itself, or of a folder the deepest that it goes for


@dataclass(frozen=True)
class Standing:
    """A checkpoint, and how it stands in the tiers."""

    candidate: Candidate  # `safe` is worked out here
    durability: Sequence[str] = ()  # tiers that hold all of it
    unkept: frozenset[str] = frozenset()  # tiers that it was kept from, or has left, because of policies


@dataclass(frozen=True)
class Fate:
    """What is to become of one checkpoint."""

    path: str
    wanted: Mapping[str, str]  # tier that wants it → why
    goes: bool = False  # as a whole
    leaves: tuple[str, ...] = ()  # these tiers, now
    returns: tuple[str, ...] = ()  # into these tiers, from which it was kept
    skips: tuple[str, ...] = ()  # tiers that it is not to be brought into
    why: str = ""
    #: tier that it leaves, or "" as it goes as a whole → the newer checkpoint because of which it may, and the tier that must hold that
    because_of: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def judge(rules: Mapping[str, Rule], order: Sequence[str], standings: Sequence[Standing]) -> list[Fate]:
    """The fate of each checkpoint of a folder, oldest first. `order`: the durable tiers; rules of other tiers say nothing."""
    own = {tier: rules[tier] for tier in order if tier in rules}
    others = [tier for tier in order if tier not in own]
    ordered = sorted(standings, key=lambda standing: standing.candidate.opened)
    ruling = {tier: _Ruling.of(rule, rule.safe_in or tier, order, ordered) for tier, rule in own.items()}
    if others:
        rule = rules.get(FOLDER, Rule(()))
        ruling |= dict.fromkeys(others, _Ruling.of(rule, rule.safe_in or others[-1], order, ordered))
    return [_fate(standing, ruling, own, order) for standing in ordered]


@dataclass(frozen=True)
class _Ruling:
    """What one list of policies says of the folder's checkpoints."""

    decision: Decision
    safe_in: str

    @classmethod
    def of(cls, rule: Rule, safe_in: str, order: Sequence[str], standings: Sequence[Standing]) -> _Ruling:
        def safe(standing: Standing) -> bool:
            return safe_in in order and is_as_safe_as(safe_in, standing.durability, order)

        return cls(decide(rule.policies, [replace(one.candidate, safe=safe(one)) for one in standings]), safe_in)

    def wants(self, path: str) -> str | None:
        """Why, if it does."""
        reason = self.decision.staying.get(path)
        return None if reason == NOT_YET else reason

    def lets_go(self, path: str) -> bool:
        return path not in self.decision.staying

    @property
    def because_of(self) -> tuple[str, str]:
        assert self.decision.last_good is not None
        return self.decision.last_good, self.safe_in


def _fate(standing: Standing, ruling: Mapping[str, _Ruling], own: Mapping[str, Rule], order: Sequence[str]) -> Fate:
    path = standing.candidate.path
    wanted = {tier: why for tier in order if (why := ruling[tier].wants(path)) is not None}
    why = _why(wanted, own)
    if not wanted:
        # Tiers that do not hold it have nothing to lose; the deepest that does says what "as safe" means.
        holding = [tier for tier in order if tier in standing.durability] or order
        if all(ruling[tier].lets_go(path) for tier in holding):
            return Fate(path, wanted, goes=True, why="no policy keeps it", because_of={"": ruling[holding[-1]].because_of})
    # Where only the folder speaks, and nothing wants it, it goes as a whole or not at all.
    spoken = order if wanted else [*own]
    unwanted = [tier for tier in spoken if tier not in wanted]
    leaves = tuple(tier for tier in unwanted if _may_leave(tier, standing, ruling[tier], wanted, order))
    return Fate(
        path,
        wanted,
        leaves=leaves,
        returns=tuple(tier for tier in order if tier in standing.unkept and tier not in unwanted),
        skips=tuple(unwanted),
        why=why or NOT_YET,
        because_of={tier: ruling[tier].because_of for tier in leaves if tier in standing.durability},
    )


def _may_leave(tier: str, standing: Standing, ruling: _Ruling, wanted: Mapping[str, str], order: Sequence[str]) -> bool:
    deeper = order[order.index(tier) + 1 :]
    elsewhere = any(other in standing.durability for other in order if other != tier and (other in wanted or other in deeper))
    return elsewhere and (tier not in standing.durability or ruling.lets_go(standing.candidate.path))


def _why(wanted: Mapping[str, str], own: Mapping[str, Rule]) -> str:
    if not own:
        return next(iter(wanted.values()), "")
    return ", ".join(f"{why} in {tier}" for tier, why in wanted.items())
