"""How does a state that was spread over ranks become a state again, whole or a rank's share of it, whatever the number of ranks?

`shards.json` says where each tensor's boxes lie and which ranks' parts have, together, all places of the state. From those parts, merged,
comes the outline; a tensor in it is a whole one. Without `into`, new tensors are made whole. With it, each tensor there says which
box of the whole it wants (a DTensor by its placements, others by `shards=`, or all of it), and only those boxes are read, from whichever
ranks' files hold them. `into` may hold less than was stored (a pipeline stage, say), not more.

Plain leaves that were not equal on all ranks are those of this rank, where it was one of as many ranks; else `per_rank` says what to do,
or the load is refused by the leaf's place. One call, one thread, beside the readers' own. A load that fails leaves `into` partly filled.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from ckptstore.boxes import Box
from ckptstore.errors import InvalidInput
from ckptstore.part import child_names, join_place, shown_place
from ckptstore.part_reading import ABSENT, Selection, TensorRef, parse_part
from ckptstore.safetensors_format import Header, TensorEntry, tensor_size_bytes
from ckptstore.shards import Piece, ShardTable, Spread, with_spread_tensors
from ckptstore_client.filling import new_tensors
from ckptstore_client.frameworks import framework, leaf_decoders, tensor_tags
from ckptstore_client.loading import Match, assembled, references, updated
from ckptstore_client.rank_file import OpenObject, RankFile
from ckptstore_client.reading import VerifiedObject
from ckptstore_client.sharding.filling_boxes import Want, fill_boxes
from ckptstore_client.sharding.slices import Extent
from ckptstore_client.sharding.spreading import dtensor_type, is_alone
from ckptstore_tiers.private_memory import FreshMemory

#: What becomes of a plain leaf that ranks had their own of: that of a saved rank, by its number or by what a function makes of the leaf's
#: place and the ranks that have one; or "keep": what is in `into` stays.
PerRank = int | str | Callable[[str, Sequence[int]], int]
KEEP = "keep"
#: For all such leaves, or by place and pattern of places.
PerRanks = PerRank | Mapping[str, PerRank] | None


@dataclass(frozen=True)
class Share:
    """What one rank asks for. `rank` is the saved rank that it was, if there were as many then; else None."""

    rank: int | None = None
    shards: Mapping[str, Extent] = field(default_factory=dict)
    per_rank: PerRanks = None

    def of_leaf(self, place: str, holders: Sequence[int]) -> int | None:
        """The saved rank whose leaf is wanted; None: what is there stays. InvalidInput if nobody says."""
        said = self.per_rank
        if isinstance(said, Mapping):
            said = next((value for pattern, value in said.items() if place == pattern or fnmatchcase(place, pattern)), None)
        if said is None and self.rank in holders:
            return self.rank
        if said == KEEP:
            return None
        chosen = said(place, holders) if callable(said) else said
        if type(chosen) is not int or chosen not in holders:
            why = "ranks had their own of it when it was saved" if said is None else f"rank {chosen!r:.40} had none when it was saved"
            hint = f"ranks {_shown(holders)} have one: per_rank= takes a rank, a function of place and ranks, 'keep', or a dict of these"
            raise InvalidInput(why, operation="load", subject=place, hint=hint)
        return chosen


def _shown(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (", …" if len(ranks) > 8 else "")


@dataclass(frozen=True)
class _OwnRef:
    """In an outline: a plain tensor of one rank, in whose file it is. Stands for the key that the virtual header has for it."""

    rank: int
    key: str

    @property
    def virtual(self) -> str:
        return f"{self.rank}\0{self.key}"


class _Refused:
    """In an outline: a leaf that may not be loaded, and why."""

    def __init__(self, error: InvalidInput) -> None:
        self.error = error


class ShardedCheckpoint:
    """A checkpoint with `shards.json`, open for reading. Its parts' headers are read once. A context manager."""

    def __init__(self, index: ShardTable, open_part: Callable[[int], VerifiedObject], open_object: OpenObject) -> None:
        self.index = index
        self._open_part = open_part
        self._open_object = open_object
        self._parts: dict[int, RankFile] = {}

    def __enter__(self) -> ShardedCheckpoint:
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._parts.values():
            part.reader.__exit__(None, None, None)

    @contextmanager
    def part(self, rank: int) -> Iterator[RankFile]:
        """A rank's file. Those that gave the outline stay open; others are closed when they were read."""
        known = self._parts.get(rank)
        if known is not None:
            yield known
            return
        with self._open_part(rank) as reader:
            yield RankFile.of(reader, self._open_object)

    def load(self, into: Any, only: str | Sequence[str] | None, share: Share) -> Any:
        """The state, whole, or `into` filled with its share of it."""
        outline, header = self.outline(Selection(only), share)
        if into is None:
            refuse(outline)
            tensors, memory = new_tensors({ref: header.tensors[ref.key] for ref in references(outline)})
            whole = (Want(self.spread(ref.key, header), Box.whole(header.tensors[ref.key].shape), framework(ref.tag), tensor)
                     for ref, tensor in tensors.items())  # fmt: skip
            with FreshMemory(memory) as fresh:
                fill_boxes(whole, self.part, fresh)
            return assembled(outline, tensors)
        match = _ShareMatch(header, self, share)
        match.check(into, outline, None)
        if only is None:
            match.check_extra(into, outline, None)
        match.check_declared()
        fill_boxes(match.wants, self.part)
        return updated(into, outline)

    def spread(self, key: str, header: Header) -> Spread:
        """A tensor of an outline, spread over ranks or a plain one of a single rank."""
        rank, found, own = key.partition("\0")
        if not found:
            return self.index.tensor(key)
        entry = header.tensors[key]
        return Spread(key, entry.dtype, entry.shape, None, (Piece(int(rank), Box.whole(entry.shape), own),))

    def outline(self, selection: Selection, share: Share) -> tuple[Any, Header]:
        """The nesting of the whole state, and a header of its tensors: whole ones, and plain ones of single ranks."""
        choices = {place: _choice(share, place, ranks) for place, ranks in self.index.per_rank.items() if selection.takes(place)}
        more = sorted({rank for rank in choices.values() if isinstance(rank, int)}.difference(self.index.trees))
        whole = with_spread_tensors(Header({}, {}, 0), self.index)
        parts = [(rank, self._outline_of(rank, whole, selection)) for rank in (*self.index.trees, *more)]
        merged = _Merging(self.index, choices).merge(parts, None)
        own: dict[str, TensorEntry] = {}
        for rank, part in self._parts.items():
            own |= {_OwnRef(rank, key).virtual: entry for key, entry in part.header.tensors.items() if key not in self.index}
            own |= {_OwnRef(home, key).virtual: entry for key, (home, entry) in self.index.copies.get(rank, {}).items()}
        return merged, Header(whole.tensors | own, {}, 0)

    def _outline_of(self, rank: int, whole: Header, selection: Selection) -> Any:
        if rank not in self._parts:
            reader = self._open_part(rank)
            reader.__enter__()
            self._parts[rank] = RankFile.of(reader, self._open_object)
        header = self._parts[rank].header
        copies = {key: entry for key, (_, entry) in self.index.copies.get(rank, {}).items()}
        return parse_part(Header(header.tensors | whole.tensors | copies, header.metadata, 0), selection, leaf_decoders())


def _choice(share: Share, place: str, ranks: Sequence[int]) -> int | _Refused | None:
    try:
        return share.of_leaf(place, ranks)
    except InvalidInput as error:
        return _Refused(error)


class _Merging:
    """Several ranks' outlines become one: what any of them has is there."""

    def __init__(self, index: ShardTable, choices: Mapping[str, int | _Refused | None]) -> None:
        self._index = index
        self._choices = choices

    def merge(self, nodes: Sequence[tuple[int, Any]], place: str | None) -> Any:
        nodes = [(rank, node) for rank, node in nodes if node is not ABSENT]
        if not nodes:
            return ABSENT
        if (place or "") in self._choices:
            choice = self._choices[place or ""]
            if not isinstance(choice, int):
                return ABSENT if choice is None else choice
            nodes = [(rank, node) for rank, node in nodes if rank == choice] or nodes[:1]
        rank, first = nodes[0]
        if isinstance(first, dict) and all(isinstance(node, dict) for _, node in nodes):
            return self._mapping(type(first), [(rank, node) for rank, node in nodes], place)
        if type(first) in (list, tuple):
            alike = [(rank, node) for rank, node in nodes if type(node) is type(first)]
            longest = max(len(node) for _, node in alike)
            merged = [
                self.merge([(rank, node[i]) for rank, node in alike if len(node) > i], join_place(place, str(i))) for i in range(longest)
            ]
            return merged if type(first) is list else tuple(merged)
        if type(first) is TensorRef and first.key not in self._index:
            home, _ = self._index.copies.get(rank, {}).get(first.key, (rank, None))
            return TensorRef(first.tag, _OwnRef(home, first.key).virtual)
        return first

    def _mapping(self, kind: type[dict[Any, Any]], nodes: Sequence[tuple[int, dict[Any, Any]]], place: str | None) -> Any:
        named: dict[Any, str] = {}
        for _, node in nodes:
            named |= dict(zip(node, child_names(node), strict=True))
        merged = kind() if kind is OrderedDict else {}
        for key, name in named.items():
            merged[key] = self.merge([(rank, node[key]) for rank, node in nodes if key in node], join_place(place, name))
        return merged


def refuse(outline: Any) -> None:
    """InvalidInput if a leaf of the outline may not be loaded."""
    if isinstance(outline, _Refused):
        raise outline.error
    children: Iterable[Any] = outline.values() if isinstance(outline, dict) else outline if type(outline) in (list, tuple) else ()
    for child in children:
        refuse(child)


class _ShareMatch(Match):
    """Checks `into` against the merged outline, and collects which boxes it wants."""

    def __init__(self, header: Header, checkpoint: ShardedCheckpoint, share: Share) -> None:
        kinds = {**tensor_tags(), **({} if (dtensor := dtensor_type()) is None else {dtensor: "$torch"})}
        super().__init__(header, kinds)
        self.wants: list[Want] = []
        self._checkpoint = checkpoint
        self._share = share
        self._declared: set[str] = set()

    def check(self, value: Any, outline: Any, place: str | None) -> None:
        if isinstance(outline, _Refused):
            raise outline.error
        super().check(value, outline, place)

    def _missing(self, place: str) -> None:
        """`into` may be a part of what was stored."""

    def _tensor(self, value: Any, ref: TensorRef, place: str | None) -> None:
        self._check_kind(value, ref, place)
        target, entry = framework(ref.tag), self._header.tensors[ref.key]
        spread = self._checkpoint.spread(ref.key, self._header)
        box, local = self._wanted(value, spread, place)
        size = tensor_size_bytes(entry.dtype, box.size)
        target.check_destination(local, TensorEntry(ref.key, entry.dtype, box.size, 0, size), shown_place(place))
        if prod(box.size):
            self.wants.append(Want(spread, box, target, local, common=not is_alone(value)))

    def _wanted(self, value: Any, spread: Spread, place: str | None) -> tuple[Box, Any]:
        """Which box of the whole a tensor wants, and the memory for it."""
        if type(value) is dtensor_type():
            from ckptstore_client.sharding.dtensors import SCATTERED, SCATTERED_HINT, wanted_box

            box, whole, local = wanted_box(value)
            if box is None:
                raise InvalidInput(SCATTERED, operation="load into", subject=shown_place(place), hint=SCATTERED_HINT)
        else:
            extent = self._extent(place or "")
            local = value.detach() if "torch" in sys.modules and hasattr(value, "detach") else value
            try:
                box, whole = (Box.whole(spread.shape), spread.shape) if extent is None else extent.resolve(tuple(value.shape))
            except (TypeError, ValueError) as error:
                raise InvalidInput(f"shards= does not fit it: {error}", operation="load into", subject=place) from error
        if whole != spread.shape:
            raise InvalidInput(f"it is one of {whole}, stored is one of {spread.shape}", operation="load into", subject=shown_place(place))
        return box, local

    def _extent(self, place: str) -> Extent | None:
        for pattern, extent in self._share.shards.items():
            if place == pattern or fnmatchcase(place, pattern):
                self._declared.add(pattern)
                return extent
        return None

    def check_declared(self) -> None:
        """A key of `shards` that fits nothing would be a misspelt one."""
        for pattern in self._share.shards:
            if pattern not in self._declared:
                raise InvalidInput("shards= names it, and no tensor of into is there", operation="load into", subject=pattern)
