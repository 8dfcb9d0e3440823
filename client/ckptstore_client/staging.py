"""How does a state get into a segment? By a plan that is made once and a copy that is made every time.

The shape of a state repeats from save to save. So the plan (which tensor lies where, the header's table of tensors, the views of
each segment) is kept and found again by comparing keys, dtypes, shapes and ties; only scalars, and with them the header's text,
are written anew. Tensors whose sizes are multiples of 64 bytes come first, then those of 32, and so on: each tensor then starts
aligned to its own dtype at least, and large ones to a cache line, without a byte of padding, which safetensors does not allow. Among
them, small ones of one dtype and row shape are neighbours, to be copied in one call.

The data is copied first, all at once or in two parts (`guard`), and the header last: a segment without a header is no file. Nothing
is hashed here; the daemon does that.
A plan is immutable but for its header size, which only grows; `Staging` is guarded by a lock that is never held during a copy, so
that saves from several threads overlap.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ckptstore.errors import CkptStoreError
from ckptstore.part import PART_KEY, TORCH
from ckptstore.part_writing import Flattened, Walked, flatten, write_part
from ckptstore.safetensors_format import TensorEntry, assemble_header, build_tensor_table
from ckptstore.shards import SHARDS_KEY
from ckptstore_client.cuda import Moment, PinnedPages
from ckptstore_client.frameworks import SMALL_TENSOR_BYTES, Places, TensorSpec, framework, leaf_encoders, tensor_tags
from ckptstore_client.sharding.slices import ShardRequest
from ckptstore_client.sharding.spreading import Spreading, spread_types

T = TypeVar("T")
CACHE_LINE_BYTES = 64
#: A training script saves one or two shapes of state; more plans than this are forgotten, oldest use first.
MAX_PLANS = 8
#: Views kept: two slots for each of a few plans. Each set keeps its segment mapped.
MAX_VIEW_SETS = 6
#: Pinned segments: as many as `descriptors` keeps mapped; an older one was given back by the daemon long ago.
MAX_PINNED = 16


@dataclass(eq=False)
class Plan:
    """Where everything lies. `leaf_*` are by leaf, in the order of places; the rest is by tensor that is stored."""

    leaf_keys: list[str]
    leaf_tags: list[str]
    specs: dict[str, list[TensorSpec]]  # by tag, in the order of leaves
    ties: dict[int, int]  # leaf → the leaf that it is tied to
    entries: dict[str, list[TensorEntry]]  # by tag, those that are stored
    stored: dict[str, list[int]]  # by tag: the leaf of each entry
    table: bytes
    data_size_bytes: int
    on_cuda: bool
    header_size_bytes: int = 0


@dataclass(eq=False)
class StagedState:
    """A state, planned and not yet copied."""

    plan: Plan
    values: list[Any]
    header: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.header) + self.plan.data_size_bytes


@dataclass(eq=False)
class BoundState:
    """A staged state and the segment that it goes into. `copy` once, or twice with leaves and the rest; then `seal`."""

    staged: StagedState
    segment: memoryview
    places: dict[str, Places]  # by tag, one for each tensor that is stored
    moment: Moment | None  # of the save, where there are CUDA tensors

    def copy(self, leaves: Container[int] | None = None) -> None:
        """Copy the tensors of these leaves (None: all)."""
        values = self.staged.values
        for tag, places in self.places.items():
            stored = self.staged.plan.stored[tag]
            if leaves is None and self.moment is None:
                places.copy([values[leaf] for leaf in stored])
            else:
                pairs = [(view, values[leaf]) for view, leaf in zip(places.views, stored, strict=True) if leaves is None or leaf in leaves]
                framework(tag).copy([view for view, _ in pairs], [value for _, value in pairs], self.moment)

    def seal(self) -> None:
        """Write the header: without it the segment is no file."""
        self.segment[: len(self.staged.header)] = self.staged.header


@dataclass
class Staging:
    """The plans and views of one client."""

    _plans: list[Plan] = field(default_factory=list)
    _walked: Walked = field(default_factory=dict)
    _spreading: Spreading = field(default_factory=Spreading)
    _places: OrderedDict[tuple[int, Hashable, int], dict[str, Places]] = field(default_factory=OrderedDict)
    _pinned: OrderedDict[Hashable, PinnedPages] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _planning: threading.Lock = field(default_factory=threading.Lock)  # walks share what they remember

    def plan(self, state: Any, sharding: ShardRequest | None = None) -> StagedState:
        """Take the state apart and find or make its plan. NotStorable, by place; nothing was written anywhere then.

        Of a state that is spread over ranks, it is the plan of what this rank stores.
        """
        with self._planning:
            return self._plan(state, sharding)

    def _plan(self, state: Any, sharding: ShardRequest | None) -> StagedState:
        flat = flatten(state, {**tensor_tags(), **spread_types()}, leaf_encoders(), self._walked)
        tags = [next(iter(node)) for node in flat.nodes]
        metadata = {"format": "pt"}
        if (local := self._spreading.local(flat, tags, sharding)) is not None:
            flat, tags, metadata[SHARDS_KEY] = local
        plan = self._known(flat, tags) or self._keep(_make_plan(flat, tags))
        for leaf, first in plan.ties.items():
            flat.nodes[leaf][tags[leaf]] = flat.keys[first]
        metadata[PART_KEY] = write_part(flat.document)
        header = assemble_header(plan.table, metadata, size_bytes=plan.header_size_bytes)
        plan.header_size_bytes = max(plan.header_size_bytes, len(header))
        return StagedState(plan, flat.values, header)

    def bind(self, staged: StagedState, segment: memoryview, segment_key: Hashable | None = None) -> BoundState:
        """The state with its place in `segment`, ready to be copied. With a `segment_key` the views are kept for the next save."""
        plan, data_start = staged.plan, len(staged.header)
        if staged.size_bytes > len(segment):
            raise CkptStoreError(f"the segment has {len(segment)} bytes, {staged.size_bytes} are needed", operation="save")
        places = self._places_of(plan, data_start, segment, segment_key)
        if plan.on_cuda and segment_key is not None:
            self._pin(segment_key, segment)
        moment = Moment(staged.values[leaf] for leaf in plan.stored[TORCH]) if plan.on_cuda else None
        return BoundState(staged, segment, places, moment)

    def copy(self, staged: StagedState, segment: memoryview, segment_key: Hashable | None = None) -> None:
        """Write the whole file into `segment`."""
        bound = self.bind(staged, segment, segment_key)
        bound.copy()
        bound.seal()

    def forget(self) -> None:
        """Drop all views, so that the segments of a daemon that is gone can be unmapped. A save that still copies there is lost anyway."""
        with self._lock:
            self._places.clear()
            pinned, self._pinned = list(self._pinned.values()), OrderedDict()
        for pages in pinned:
            pages.close()

    def _pin(self, segment_key: Hashable, segment: memoryview) -> None:
        """Have CUDA copy into this segment by DMA, from now on."""
        with self._lock:
            if segment_key not in self._pinned:
                self._pinned[segment_key] = PinnedPages(segment)
            stale = [self._pinned.popitem(last=False)[1] for _ in range(len(self._pinned) - MAX_PINNED)]
        for pages in stale:
            pages.close()

    def _known(self, flat: Flattened, tags: list[str]) -> Plan | None:
        with self._lock:
            candidates = [plan for plan in self._plans if plan.leaf_keys == flat.keys and plan.leaf_tags == tags]
        for plan in candidates:
            values = _by_tag(flat.values, tags)
            if all(framework(tag).unchanged(values[tag], specs) for tag, specs in plan.specs.items()) and plan.ties == _ties(flat, tags):
                return plan
        return None

    def _keep(self, plan: Plan) -> Plan:
        with self._lock:
            self._plans = [plan, *self._plans[: MAX_PLANS - 1]]
        return plan

    def _places_of(self, plan: Plan, data_start: int, segment: memoryview, segment_key: Hashable) -> dict[str, Places]:
        key = (id(plan), segment_key, data_start)
        with self._lock:
            known = self._places.get(key)
            if known is not None:
                self._places.move_to_end(key)
                return known
        places = {tag: framework(tag).places(segment, entries, data_start) for tag, entries in plan.entries.items()}
        if segment_key is not None:
            with self._lock:
                kept_plans = {id(kept) for kept in self._plans}
                if id(plan) in kept_plans:  # a forgotten plan's id may be given to another
                    self._places[key] = places
                for stale in [k for k in self._places if k[0] not in kept_plans] + list(self._places)[:-MAX_VIEW_SETS]:
                    self._places.pop(stale, None)
        return places


def _by_tag(of_leaves: Sequence[T], tags: Sequence[str]) -> dict[str, list[T]]:
    """What belongs to the leaves, by their tags; there is mostly one."""
    kinds = set(tags)
    if len(kinds) == 1:
        return {kinds.pop(): list(of_leaves)}
    found: dict[str, list[T]] = {tag: [] for tag in dict.fromkeys(tags)}
    for item, tag in zip(of_leaves, tags, strict=True):
        found[tag].append(item)
    return found


def _ties(flat: Flattened, tags: list[str]) -> dict[int, int]:
    ties: dict[int, int] = {}
    for tag, leaves in _by_tag(range(len(tags)), tags).items():
        found = framework(tag).ties(flat.values if len(leaves) == len(tags) else [flat.values[leaf] for leaf in leaves])
        ties |= {leaves[index]: leaves[first] for index, first in found.items()}
    return ties


def _make_plan(flat: Flattened, tags: list[str]) -> Plan:
    by_tag = _by_tag(range(len(tags)), tags)
    specs = {
        tag: framework(tag).specs([flat.keys[leaf] for leaf in leaves], [flat.values[leaf] for leaf in leaves])
        for tag, leaves in by_tag.items()
    }
    spec_of = {leaf: spec for tag, leaves in by_tag.items() for leaf, spec in zip(leaves, specs[tag], strict=True)}
    ties = _ties(flat, tags)
    order = sorted((leaf for leaf in range(len(tags)) if leaf not in ties), key=_file_order(spec_of))
    entries: dict[int, TensorEntry] = {}
    position = 0
    for leaf in order:
        spec = spec_of[leaf]
        entries[leaf] = TensorEntry(flat.keys[leaf], spec.dtype, spec.shape, position, position + spec.size_bytes)
        position += spec.size_bytes
    stored = {tag: [leaf for leaf in leaves if leaf in entries] for tag, leaves in by_tag.items()}
    return Plan(
        leaf_keys=flat.keys,
        leaf_tags=tags,
        specs=specs,
        ties=ties,
        entries={tag: [entries[leaf] for leaf in leaves] for tag, leaves in stored.items()},
        stored=stored,
        table=build_tensor_table(entries.values()),
        data_size_bytes=position,
        on_cuda=any(getattr(value, "is_cuda", False) for value in flat.values),
    )


def _file_order(specs: Mapping[int, TensorSpec]) -> Callable[[int], tuple[int, int]]:
    """A sort key of leaves: aligned ones first; small tensors of one kind beside each other, so that they can be copied together."""
    kinds: dict[tuple[str, tuple[int, ...]], int] = {}

    def key(leaf: int) -> tuple[int, int]:
        spec = specs[leaf]
        small = 0 < spec.size_bytes <= SMALL_TENSOR_BYTES
        return -alignment(spec.size_bytes), kinds.setdefault((spec.dtype, spec.shape[1:]), len(kinds) + 1) if small else 0

    return key


def alignment(size_bytes: int) -> int:
    """The largest power of two, up to a cache line, that divides the size."""
    return min(size_bytes & -size_bytes, CACHE_LINE_BYTES) if size_bytes else CACHE_LINE_BYTES
