"""What of a sharded state does this rank store, and what does it say of the rest? Without a word to other ranks.

DTensors and what `shards=` declares are pieces of tensors that are spread over ranks; every other leaf is plain, and stored by each rank
that has it. From the leaves of a state this makes those that are stored, with their keys, and the plan that goes into the header
(`ckptstore.shards`), as text. Both are kept and found again while keys, placements, shapes and ties stay as they were; then a save costs
a few attribute reads a tensor.

`Spreading` is of one client; its caller holds a lock.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ckptstore.boxes import Box, Grid
from ckptstore.errors import InvalidInput, NotStorable
from ckptstore.part import ARRAY, TORCH
from ckptstore.part_writing import Flattened
from ckptstore.shards import Piece, write_table, written_boxes
from ckptstore_client.frameworks import framework
from ckptstore_client.sharding.pieces import ArrayPieces, TorchPieces, piece_key
from ckptstore_client.sharding.slices import Extent, ShardRequest, declared, is_owner

if TYPE_CHECKING:
    from ckptstore_client.sharding.dtensors import DTensorReader

#: A training script saves one or two shapes of state.
_MAX_KNOWN = 8


def spread_types() -> Mapping[type, str]:
    """Exact type → tag, of leaves that are spread over ranks."""
    tags: dict[type, str] = {TorchPieces: TORCH, ArrayPieces: ARRAY}
    if (dtensor := dtensor_type()) is not None:
        tags[dtensor] = TORCH
    return tags


def dtensor_type() -> type | None:
    module = sys.modules.get("torch.distributed.tensor")
    return getattr(module, "DTensor", None)


def is_alone(value: Any) -> bool:
    """Whether a value says itself that no other rank holds the same elements: a DTensor that is not replicated."""
    if type(value) is not dtensor_type():
        return False
    from ckptstore_client.sharding.dtensors import is_unreplicated

    return is_unreplicated(value)


@dataclass(frozen=True)
class Stored:
    """A leaf as it is stored: its number, its key, and what of it: some rows of the local tensor, or one of its pieces, or all."""

    leaf: int
    key: str
    rows: slice | None = None
    piece: Box | None = None


@dataclass(eq=False)
class _Known:
    """What was found out for one shape of state."""

    request: ShardRequest
    keys: list[str]
    tags: list[str]
    dtensors: list[int]  # leaves
    specs: list[Any]  # of these, what must be the same object for the rest to hold
    stored: list[Stored] = field(default_factory=list)
    ties: dict[int, int] = field(default_factory=dict)
    #: tied here, and stored twice: on a rank where it is empty nobody could tell that it is tied
    untied: set[int] = field(default_factory=set)
    spread: set[int] = field(default_factory=set)
    plan: str = ""
    declared: dict[int, tuple[int, ...]] = field(default_factory=dict)  # leaves of `shards=`, with their shapes

    @cached_property
    def leaves(self) -> list[int]:
        return [stored.leaf for stored in self.stored]

    @cached_property
    def stored_keys(self) -> list[str]:
        return [stored.key for stored in self.stored]

    @cached_property
    def special(self) -> dict[int, Stored]:
        """By position, those that are not stored as they are."""
        return {
            position: stored
            for position, stored in enumerate(self.stored)
            if stored.rows is not None or stored.piece is not None or stored.leaf in self.untied
        }


@dataclass
class Spreading:
    _known: list[_Known] = field(default_factory=list)

    def local(self, flat: Flattened, tags: list[str], request: ShardRequest | None) -> tuple[Flattened, list[str], str] | None:
        """The leaves that this rank stores, and its plan; None where nothing says that the state is sharded."""
        dtensor = dtensor_type()
        types = list(map(type, flat.values))
        kinds = set(types)
        if not (request is not None and request.is_asked_for) and kinds.isdisjoint(spread_types()):
            return None
        request = request or ShardRequest(0, 1)
        dtensors = [] if dtensor not in kinds else [i for i, kind in enumerate(types) if kind is dtensor]
        values = list(flat.values)
        if dtensors:
            from ckptstore_client.sharding.dtensors import local_tensors

            for i, local in zip(dtensors, local_tensors([values[i] for i in dtensors]), strict=True):
                values[i] = local
        known = None if kinds & {TorchPieces, ArrayPieces} else self._find(flat, tags, request, dtensors, values)
        if known is None:
            known = _Maker(request, flat, tags, dtensors, values).make()
            self._known = [known, *self._known[: _MAX_KNOWN - 1]]
        return _applied(known, flat, tags, values)

    def _find(self, flat: Flattened, tags: list[str], request: ShardRequest, dtensors: list[int], values: list[Any]) -> _Known | None:
        for known in self._known:
            if known.request != request or known.keys != flat.keys or known.tags != tags or known.dtensors != dtensors:
                continue
            same = _specs([flat.values[i] for i in dtensors]) == known.specs  # mostly the same objects, which costs no call
            if same and all(tuple(values[i].shape) == shape for i, shape in known.declared.items()):
                ties = _ties(values, tags, sorted(known.spread))
                if {leaf: first for leaf, first in ties.items() if leaf not in known.untied} == known.ties:
                    return known
        return None


def _specs(dtensors: Sequence[Any]) -> list[Any]:
    """What stands for mesh, placements and shape of each. torch keeps one object for all tensors that are alike in these."""
    try:
        return list(map(attrgetter("_spec"), dtensors))
    except AttributeError:  # another torch: slower, by what is public
        return [(value.device_mesh, value.placements, value.shape) for value in dtensors]


def _applied(known: _Known, flat: Flattened, tags: list[str], values: list[Any]) -> tuple[Flattened, list[str], str]:
    for leaf, first in known.ties.items():
        flat.nodes[leaf][tags[leaf]] = flat.keys[first]
    leaves = known.leaves
    found = Flattened(flat.document, known.stored_keys, [values[leaf] for leaf in leaves], [flat.nodes[leaf] for leaf in leaves])
    for position, stored in known.special.items():
        value = found.values[position]
        if stored.piece is not None:
            value = next(piece for box, piece in value.pieces if box == stored.piece)
        elif stored.rows is not None:
            value = value[stored.rows]
        found.values[position] = _copied(value) if stored.leaf in known.untied else value
    return found, [tags[leaf] for leaf in leaves], known.plan


def _copied(value: Any) -> Any:
    """Memory of its own."""
    return value.detach().clone() if hasattr(value, "detach") else value.copy()


def _ties(values: Sequence[Any], tags: Sequence[str], leaves: Sequence[int]) -> dict[int, int]:
    """leaf → the first leaf that is the same tensor, among these."""
    found: dict[int, int] = {}
    for tag in set(tags):
        mine = [leaf for leaf in leaves if tags[leaf] == tag and not isinstance(values[leaf], TorchPieces | ArrayPieces)]
        if mine:
            found |= {mine[i]: mine[first] for i, first in framework(tag).ties([values[leaf] for leaf in mine]).items()}
    return found


class _Maker:
    """Finds out, for one state, what is stored and what is said."""

    def __init__(self, request: ShardRequest, flat: Flattened, tags: list[str], dtensors: list[int], values: list[Any]) -> None:
        self._request = request
        self._flat = flat
        self._tags = tags
        self._values = values  # local ones, where the leaf is a DTensor
        self._known = _Known(request, flat.keys, tags, dtensors, _specs([flat.values[i] for i in dtensors]))
        self._tensors: dict[str, Any] = {}
        self._grids: dict[Grid, int] = {}
        self._memory: set[Hashable] = set()  # of the pieces so far

    def make(self) -> _Known:
        known, keys = self._known, self._flat.keys
        extents = declared(keys, self._request.shards or {}, "save")
        said = {leaf: extents[key] for leaf, key in enumerate(keys) if key in extents}
        pieces = [leaf for leaf, value in enumerate(self._values) if isinstance(value, TorchPieces | ArrayPieces)]
        known.spread = {*known.dtensors, *said, *pieces}
        ties = _ties(self._values, self._tags, sorted(known.spread))
        known.untied = {leaf for leaf in ties if leaf in known.dtensors and self._is_empty_somewhere(leaf)}
        known.ties = {leaf: first for leaf, first in ties.items() if leaf not in known.untied}
        stored: list[Stored] = [Stored(leaf, key) for leaf, key in enumerate(keys) if leaf not in known.spread]
        for leaf in known.spread.difference(known.ties):
            if leaf in said:
                stored += self._declared(leaf, said[leaf])
            elif leaf in pieces:
                stored += self._pieces(leaf)
            else:
                stored += self._dtensor(leaf)
        known.stored = sorted(stored, key=lambda item: item.leaf)
        if len({item.key for item in stored}) != len(stored):
            raise InvalidInput("a tensor has the name of another's piece", operation="save", hint="names that end in '@' and numbers")
        known.plan = write_table(self._tensors, list(self._grids), self._request.expect).decode("utf-8")
        return known

    def _declared(self, leaf: int, extent: Extent) -> list[Stored]:
        name, value = self._flat.keys[leaf], self._values[leaf]
        if leaf in self._known.dtensors:
            why = "it is a DTensor, which says itself how it is spread"
            raise NotStorable(why, operation="save", subject=name, hint="leave it out of shards=")
        spec = framework(self._tags[leaf]).specs([name], [value])[0]
        self._known.declared[leaf] = tuple(value.shape)
        try:
            box, whole = extent.resolve(spec.shape)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"shards= does not fit it: {error}", operation="save", subject=name) from error
        mine = is_owner(name, extent.replica) and box.volume > 0
        self._say(name, spec.dtype, whole, [(box, name)] if mine else [])
        return [Stored(leaf, name)] if mine else []

    def _pieces(self, leaf: int) -> list[Stored]:
        name, value = self._flat.keys[leaf], self._values[leaf]
        memory = {framework(self._tags[leaf]).same_tensor(piece) for _, piece in value.pieces}
        if memory & self._memory:  # tied here; processes that hold other pieces could not tell
            self._known.untied.add(leaf)
        self._memory |= memory
        keyed = [(box, name if len(value.pieces) == 1 else piece_key(name, box)) for box, _ in value.pieces]
        self._say(name, value.dtype, value.shape, keyed)
        return [Stored(leaf, key, piece=box) for box, key in keyed]

    def _say(self, name: str, dtype: str, whole: tuple[int, ...], keyed: Sequence[tuple[Box, str]]) -> None:
        boxes = written_boxes(Piece(self._request.rank, box, key) for box, key in keyed)
        self._tensors[name] = [dtype, list(whole), boxes]

    @cached_property
    def _reader(self) -> DTensorReader:
        from ckptstore_client.sharding.dtensors import DTensorReader

        return DTensorReader(self._request.rank)

    def _is_empty_somewhere(self, leaf: int) -> bool:
        holding = self._reader.holding(self._flat.keys[leaf], self._flat.values[leaf])
        return holding.grid is None or len(list(holding.grid.cells(holding.shape))) < len(holding.grid.ranks)

    def _dtensor(self, leaf: int) -> list[Stored]:
        name = self._flat.keys[leaf]
        local = self._values[leaf]
        holding = self._reader.holding(name, self._flat.values[leaf])
        if tuple(local.shape) != holding.held.size:
            why = f"its local tensor is {tuple(local.shape)}, its placements say {holding.held.size}"
            raise NotStorable(why, operation="save", subject=name)
        dtype = framework(self._tags[leaf]).specs([name], [local])[0].dtype
        if holding.grid is not None:
            self._tensors[name] = [dtype, list(holding.shape), self._grids.setdefault(holding.grid, len(self._grids))]
        else:
            self._say(name, dtype, holding.shape, [] if holding.stored is None else [(holding.stored, name)])
        if holding.stored is None:
            return []
        if holding.stored == holding.held:
            return [Stored(leaf, name)]
        first = holding.stored.offset[0] - holding.held.offset[0]
        return [Stored(leaf, name, slice(first, first + holding.stored.size[0]))]
