"""Do the ranks of an attempt have, together, each tensor whole and once? From their plans to `shards.json`, or to what is missing.

Several meshes may each have the whole of a tensor: a norm that is sharded over data-parallel ranks alone is so on each of the meshes that
tensor parallelism makes of them. Where some other tensor is spread over all of their ranks, they are parts of one mesh, and these are
copies, trusted to be equal as `Replicate()` is; that of the lowest ranks is the one that is read. Meshes that nothing joins, such as the
stages of a pipeline, may well mean different tensors by one name.

What is refused, by the tensor's name (InvalidInput): ranks that disagree on a tensor's dtype, shape or distribution; one that several
meshes have whole and nothing joins; a box that no rank of a mesh has, or two have; a tensor that some rank holds as a plain leaf; a pattern
of `expect` that nothing matches; ranks that saved without a plan beside others that have one. Plain leaves are sorted into those that are
equal on all ranks that have them, and the others.

Ranks with equal documents are treated as one: the work grows with the tensors and the differing documents, not with ranks times tensors,
where grids describe the tensors. Pure functions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ckptstore.boxes import Grid, cover_fault
from ckptstore.errors import InvalidInput
from ckptstore.plain_merging import PlainLeaves
from ckptstore.shards import Piece, ShardTable, Spread, write_table, written_boxes


@dataclass(frozen=True)
class RankDocuments:
    """Which documents a rank has, by their digests."""

    rank: int
    plan: str
    leaves: str


@dataclass
class _Merged:
    """What is known of one tensor."""

    first: Spread
    #: the grids that ranks say it lies in, each with the numbers of the plans that say so; none where ranks speak for themselves
    grids: list[tuple[Grid, set[int]]] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)

    def add(self, said: Spread, plan: int) -> None:
        """What one more plan says. InvalidInput if that does not go together with the others."""
        self.pieces += said.boxes
        if said.grid is None and self.first.grid is None:
            return
        for grid, sayers in self.grids:
            if grid == said.grid:
                sayers.add(plan)
                return
        if said.grid is None or self.first.grid is None or any(said.grid.cell_of.keys() & grid.cell_of.keys() for grid, _ in self.grids):
            raise _refusal("ranks disagree on how it is spread over them", said.name)
        self.grids.append((said.grid, {plan}))

    @property
    def home(self) -> Grid | None:
        """The grid that is read."""
        return min((grid for grid, _ in self.grids), key=lambda grid: min(grid.ranks), default=None)


def merge(ranks: Sequence[RankDocuments], world_size: int, plans: Mapping[str, ShardTable], leaves: Mapping[str, bytes]) -> bytes:
    """`shards.json` of these ranks. `plans` and `leaves` are by digest."""
    missing = sorted(set(range(world_size)) - {rank.rank for rank in ranks})
    if missing:
        why = f"rank {missing[0]} saved nothing of the whole, and other ranks did"
        raise InvalidInput(why, operation="publish", hint="give shards={} to save on ranks that have no sharded tensors")
    tensors = _merge_plans(plans, _having((rank.plan, rank.rank) for rank in ranks))
    plain = PlainLeaves.of(_having((rank.leaves, rank.rank) for rank in ranks), leaves)
    _check_names(tensors, plain, [pattern for plan in plans.values() for pattern in plan.expect])
    grids: dict[Grid, int] = {}
    written: dict[str, Any] = {}
    for name, merged in tensors.items():
        first, home = merged.first, merged.home
        where: Any = written_boxes(merged.pieces) if home is None else grids.setdefault(home, len(grids))
        written[name] = [first.dtype, list(first.shape), where]
    written |= plain.written_equal()
    more = {"world_size": world_size, "trees": _trees(ranks, plans, plain), "per_rank": plain.differing()}
    if copies := plain.written_copies():
        more["copies"] = copies
    return write_table(written, list(grids), more=more)


def _having(documents: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    """The ranks of each document, by digest."""
    found: dict[str, list[int]] = defaultdict(list)
    for digest, rank in documents:
        found[digest].append(rank)
    return found


# --- tensors ----------------------------------------------------------------------------------------------------------


def _merge_plans(plans: Mapping[str, ShardTable], having: Mapping[str, Sequence[int]]) -> dict[str, _Merged]:
    merged: dict[str, _Merged] = {}
    for number, digest in enumerate(having):
        for tensor in plans[digest].tensors():
            known = merged.setdefault(tensor.name, _Merged(tensor))
            _refuse_disagreement(known.first, tensor)
            known.add(tensor, number)
    ranks_of = [frozenset(ranks) for ranks in having.values()]
    silent: dict[tuple[int, frozenset[int]], set[int]] = {}
    _refuse_strangers(merged)
    for name, whole in merged.items():
        if not whole.grids:
            fault = cover_fault(whole.first.shape, [(piece.rank, piece.box) for piece in whole.pieces])
            if fault is not None:
                raise _refusal(fault, name)
        for grid, sayers in whole.grids:
            key = id(grid), frozenset(sayers)
            if key not in silent:
                silent[key] = set(grid.ranks).difference(*(ranks_of[number] for number in sayers))
            for rank in silent[key]:
                box = grid.of_rank(rank, whole.first.shape)
                if box is not None:
                    raise _refusal(f"rank {rank} should have {box} of it, of the shape {whole.first.shape}, and saved nothing", name)
    return merged


def _refuse_strangers(merged: Mapping[str, _Merged]) -> None:
    """Meshes that have the same tensor, each the whole of it, must be parts of one over which some tensor is spread."""
    spans = {frozenset(grid.ranks) for whole in merged.values() for grid, _ in whole.grids}
    for name, whole in merged.items():
        having = {rank for grid, _ in whole.grids for rank in grid.ranks}
        if len(whole.grids) > 1 and not any(span >= having for span in spans):
            one, two = (sorted(grid.ranks)[:8] for grid, _ in whole.grids[:2])
            why = f"ranks {one} and ranks {two} each have all of it, and no tensor is spread over all of them"
            raise _refusal(why, name, "give tensors of different pipeline stages different names, and save a shared one from one stage")


def _refuse_disagreement(first: Spread, other: Spread) -> None:
    for what, one, two in (("dtype", first.dtype, other.dtype), ("shape", first.shape, other.shape)):
        if one != two:
            raise _refusal(f"one rank says that its {what} is {one}, another {two}", first.name)


# --- plain leaves -----------------------------------------------------------------------------------------------------


def _check_names(tensors: Mapping[str, _Merged], plain: PlainLeaves, expect: Iterable[str]) -> None:
    for name in tensors:
        if name in plain:
            why = "one rank has it as a plain leaf, another as a piece of a tensor that is spread over ranks"
            raise _refusal(why, name, "declare it with shards= on every rank that has it")
    for pattern in dict.fromkeys(expect):
        if pattern in tensors or pattern in plain:
            continue
        if not any(fnmatchcase(name, pattern) for name in (*tensors, *plain)):
            raise _refusal("it is expected, and no rank has it", pattern)


def _trees(ranks: Sequence[RankDocuments], plans: Mapping[str, ShardTable], plain: PlainLeaves) -> list[int]:
    """Ranks whose parts have every place, together: few, since most ranks have the same places."""
    seen: set[str] = set()
    looked_at: set[tuple[str, frozenset[str]]] = set()
    chosen: list[int] = []
    for documents in sorted(ranks, key=lambda documents: documents.rank):
        places = plain.places[documents.leaves]
        if (documents.plan, places) in looked_at:
            continue
        looked_at.add((documents.plan, places))
        here = places.union(plans[documents.plan].raw)
        if not chosen or not here <= seen:
            chosen.append(documents.rank)
            seen |= here
    return chosen


def _refusal(why: str, name: str, hint: str | None = None) -> InvalidInput:
    return InvalidInput(why, operation="publish", subject=repr(name[:200]), hint=hint)
