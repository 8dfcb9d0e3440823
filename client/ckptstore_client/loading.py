"""How does a rank's file become a state again? Outline first, destinations second, bytes last.

The header (verified like everything else) gives the outline of the state. New tensors are made, or those of `into` are checked
against it, every one of them, before the first byte of data is read. Large tensors whose memory has the file's order are read
straight into place; small ones, strided ones and those on a device come through an arena of bounded size and are copied from
there in bulk. Only blocks that hold something selected are read. Of an incremental checkpoint, what its file lacks is read, in the
same way, from the objects that the file's header names, one after the other.

A load that fails in the middle leaves `into` partly filled; it never returns it. Pure but for the reading; one call, one thread,
beside the reader's own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckptstore.errors import InvalidInput
from ckptstore.layout import read_layout, with_all_tensors
from ckptstore.part import ABSENT, Selection, TensorRef, child_names, join_place, parse_part, shown_place
from ckptstore.safetensors_format import PREFIX_BYTES, Header, TensorEntry, header_size_bytes, parse_header
from ckptstore_client.frameworks import TensorFramework, framework, leaf_decoders, tensor_tags
from ckptstore_client.reading import Piece, VerifiedObject, anonymous_memory
from ckptstore_tiers.sources import address_of

#: Below this a tensor goes through the arena: a system call's piece costs more than the second copy.
DIRECT_BYTES = 256 * 1024
#: Temporary memory of a load, however large the state.
ARENA_BYTES = 256 * 1024 * 1024


#: An object of an earlier checkpoint, by id, to be opened as a context manager.
OpenObject = Callable[[str], VerifiedObject]


def _nothing_else(object_id: str) -> VerifiedObject:
    raise InvalidInput("its tensors lie in other objects, too", operation="load", subject=object_id)


def load_state(
    reader: VerifiedObject, into: Any, only: str | Sequence[str] | None, open_object: OpenObject = _nothing_else
) -> Any:
    """The state in `reader`'s file, or `into` filled with it. InvalidInput, by place, where `into` does not fit."""
    file = _RankFile.of(reader, open_object)
    header = file.header
    outline = parse_part(header, Selection(only), leaf_decoders())
    if into is None:
        tensors = {ref: framework(ref.tag).empty(header.tensors[ref.key]) for ref in _references(outline)}
        _fill(file, {ref: [tensor] for ref, tensor in tensors.items()})
        return _assembled(outline, tensors)
    match = _Match(header, tensor_tags())
    match.check(into, outline, None)
    if only is None:
        match.check_extra(into, outline, None)
    _fill(file, match.destinations)
    return _updated(into, outline)


@dataclass(frozen=True)
class _RankFile:
    """A rank's file, and the way to what lies elsewhere. `header` has all tensors; those `elsewhere` count from their object's begin."""

    reader: VerifiedObject
    header: Header
    elsewhere: Mapping[str, str]  # tensor → object id
    open_object: OpenObject

    @classmethod
    def of(cls, reader: VerifiedObject, open_object: OpenObject) -> _RankFile:
        header = read_header(reader)
        layout = read_layout(header)
        if layout is None:
            return cls(reader, header, {}, open_object)
        elsewhere = {key: found.object_id for key, found in layout.elsewhere.items()}
        return cls(reader, with_all_tensors(header, layout), elsewhere, open_object)

    def homes(self, keys: Iterable[str]) -> Iterator[tuple[VerifiedObject, int, list[TensorEntry]]]:
        """For each object that holds some of these tensors: it, open, where its data starts, and the tensors in its order."""
        by_object: dict[str, list[TensorEntry]] = {}
        for key in keys:
            by_object.setdefault(self.elsewhere.get(key, ""), []).append(self.header.tensors[key])
        for object_id, entries in by_object.items():
            entries.sort(key=lambda entry: entry.start)
            if not object_id:
                yield self.reader, self.header.data_start, entries
                continue
            with self.open_object(object_id) as other:
                yield other, 0, entries


def read_header(reader: VerifiedObject) -> Header:
    """The header of a safetensors file; reads only the blocks that hold it."""
    size_bytes = reader.file.size_bytes
    memory = _prefix(reader, min(PREFIX_BYTES, size_bytes))
    return parse_header(_prefix(reader, header_size_bytes(memory, size_bytes)), size_bytes)


def _prefix(reader: VerifiedObject, size_bytes: int) -> memoryview:
    memory = anonymous_memory(size_bytes)
    if size_bytes:
        reader.fill([Piece(0, size_bytes, address_of(memory))])
    return memory


# --- the bytes ----------------------------------------------------------------------------------------------------

Destinations = Mapping[TensorRef, Sequence[Any]]


@dataclass
class _Batch:
    """What is read in one go: straight into place, or into an arena of `arena_bytes`."""

    direct: list[tuple[TensorEntry, int]] = field(default_factory=list)
    arena: list[TensorEntry] = field(default_factory=list)
    arena_bytes: int = 0


def _fill(file: _RankFile, destinations: Destinations) -> None:
    by_key: dict[str, list[tuple[TensorFramework, Any]]] = {}
    for ref, values in destinations.items():
        by_key.setdefault(ref.key, []).extend((framework(ref.tag), value) for value in values)
    for reader, data_start, wanted in file.homes(by_key):
        for batch in _batches([entry for entry in wanted if entry.size_bytes], by_key):
            _read_batch(reader, data_start, batch, by_key)


def _batches(entries: Sequence[TensorEntry], by_key: Mapping[str, Sequence[tuple[TensorFramework, Any]]]) -> Iterator[_Batch]:
    batch = _Batch()
    for entry in entries:
        address = _direct_address(entry, by_key[entry.key])
        if address is not None:
            batch.direct.append((entry, address))
            continue
        if batch.arena and batch.arena_bytes + entry.size_bytes > ARENA_BYTES:
            yield batch
            batch = _Batch()
        batch.arena.append(entry)
        batch.arena_bytes += entry.size_bytes
    if batch.direct or batch.arena:
        yield batch


def _direct_address(entry: TensorEntry, targets: Sequence[tuple[TensorFramework, Any]]) -> int | None:
    if len(targets) != 1 or entry.size_bytes < DIRECT_BYTES:
        return None
    only_framework, value = targets[0]
    return only_framework.address(value)


def _read_batch(
    reader: VerifiedObject, data_start: int, batch: _Batch, by_key: Mapping[str, Sequence[tuple[TensorFramework, Any]]]
) -> None:
    arena = anonymous_memory(batch.arena_bytes)
    pieces = [Piece(data_start + entry.start, data_start + entry.end, address) for entry, address in batch.direct]
    moved: list[TensorEntry] = []  # the arena's tensors, at their places in it
    position, base = 0, address_of(arena)
    for entry in batch.arena:
        moved.append(TensorEntry(entry.key, entry.dtype, entry.shape, position, position + entry.size_bytes))
        start, stop, address = data_start + entry.start, data_start + entry.end, base + position
        if pieces and pieces[-1].stop == start and pieces[-1].address + start - pieces[-1].start == address:
            pieces[-1] = Piece(pieces[-1].start, stop, pieces[-1].address)  # neighbours in the file are one piece
        else:
            pieces.append(Piece(start, stop, address))
        position += entry.size_bytes
    reader.fill(sorted(pieces, key=lambda piece: piece.start))
    _scatter(arena, moved, by_key)
    for entry, _ in batch.direct:
        only_framework, value = by_key[entry.key][0]
        only_framework.touched([value])


def _scatter(arena: memoryview, entries: Sequence[TensorEntry], by_key: Mapping[str, Sequence[tuple[TensorFramework, Any]]]) -> None:
    """Copy from the arena to the tensors, all of a framework in one call."""
    groups: dict[int, tuple[TensorFramework, list[TensorEntry], list[Any]]] = {}
    for entry in entries:
        for target, value in by_key[entry.key]:
            group = groups.setdefault(id(target), (target, [], []))
            group[1].append(entry)
            group[2].append(value)
    for target, moved, values in groups.values():
        target.copy(values, target.views(arena, moved, 0))


# --- the structure ----------------------------------------------------------------------------------------------------


def _references(outline: Any) -> Iterator[TensorRef]:
    if type(outline) is TensorRef:
        yield outline
    elif isinstance(outline, dict):
        for child in outline.values():
            yield from _references(child)
    elif type(outline) in (list, tuple):
        for child in outline:
            yield from _references(child)


def _assembled(outline: Any, tensors: Mapping[TensorRef, Any]) -> Any:
    """The outline with its tensors, and None in place of what was not selected in a list or tuple, or at all."""
    kind = type(outline)
    if kind is TensorRef:
        return tensors[outline]
    if outline is ABSENT:
        return None
    if kind is dict or kind is OrderedDict:
        for key, child in outline.items():
            outline[key] = _assembled(child, tensors)
        return outline
    if kind is list:
        return [_assembled(child, tensors) for child in outline]
    if kind is tuple:
        return tuple([_assembled(child, tensors) for child in outline])
    return outline


def _updated(value: Any, outline: Any) -> Any:
    """What belongs in the place of `value`: itself with new scalars inside, or the new scalar. Tensors are filled already."""
    if outline is ABSENT or type(outline) is TensorRef:
        return value
    if isinstance(outline, dict):
        for key, child in outline.items():
            value[key] = _updated(value[key], child)
        return value
    if type(outline) is list:
        for position, child in enumerate(outline):
            value[position] = _updated(value[position], child)
        return value
    if type(outline) is tuple:
        children = tuple(_updated(old, child) for old, child in zip(value, outline, strict=True))
        return value if all(new is old for new, old in zip(children, value, strict=True)) else children
    return outline


_MAPPINGS = (dict, OrderedDict)


class _Match:
    """Checks `into` against an outline, and collects where each tensor goes."""

    def __init__(self, header: Header, tags: Mapping[type, str]) -> None:
        self.destinations: dict[TensorRef, list[Any]] = {}
        self._header = header
        self._tags = tags
        self._seen: dict[tuple[str, Hashable], str] = {}

    def check(self, value: Any, outline: Any, place: str | None) -> None:
        if outline is ABSENT:
            return None
        if type(outline) is TensorRef:
            return self._tensor(value, outline, place)
        if isinstance(outline, dict):
            return self._mapping(value, outline, place)
        if type(outline) in (list, tuple):
            if type(value) is not type(outline) or len(value) != len(outline):
                raise _unfit(f"stored is a {type(outline).__name__} of {len(outline)}, not {_told(value)}", place)
            for position, (old, child) in enumerate(zip(value, outline, strict=True)):
                self.check(old, child, join_place(place, str(position)))
            return None
        if type(value) in self._tags or (isinstance(value, dict | list | tuple) and type(value) is not type(outline)):
            raise _unfit(f"stored is a {type(outline).__name__}, not {_told(value)}", place)
        return None

    def _mapping(self, value: Any, outline: dict[Any, Any], place: str | None) -> None:
        if type(value) not in _MAPPINGS:
            raise _unfit(f"stored is a dict of {len(outline)}, not {_told(value)}", place)
        for (key, child), name in zip(outline.items(), child_names(outline), strict=True):
            if key not in value:
                raise _unfit("it is stored, and missing here", join_place(place, name))
            self.check(value[key], child, join_place(place, name))

    def check_extra(self, value: Any, outline: Any, place: str | None) -> None:
        """Without `only`, nothing may be in `into` that is not stored: it would silently keep its old value."""
        if isinstance(outline, dict):
            for key, name in zip(value, child_names(value), strict=True):
                if key not in outline:
                    raise _unfit("it is here, and not stored", join_place(place, name))
                self.check_extra(value[key], outline[key], join_place(place, name))
        elif type(outline) in (list, tuple):
            for position, (old, child) in enumerate(zip(value, outline, strict=True)):
                self.check_extra(old, child, join_place(place, str(position)))

    def _tensor(self, value: Any, ref: TensorRef, place: str | None) -> None:
        if self._tags.get(type(value)) != ref.tag:
            raise _unfit(f"stored is {'a torch tensor' if ref.tag == '$torch' else 'a numpy array'}, not {_told(value)}", place)
        target = framework(ref.tag)
        target.check_destination(value, self._header.tensors[ref.key], shown_place(place))
        known = self._seen.setdefault((ref.tag, target.same_tensor(value)), ref.key)
        if known != ref.key:
            raise _unfit(f"it is tied to another tensor here, but was stored apart from it (as {known!r})", place)
        if not any(value is other for other in self.destinations.setdefault(ref, [])):
            self.destinations[ref].append(value)


def _told(value: Any) -> str:
    size = f" of {len(value)}" if isinstance(value, dict | list | tuple) else ""
    return f"{type(value)!r}{size}"


def _unfit(why: str, place: str | None) -> InvalidInput:
    return InvalidInput(why, operation="load into", subject=shown_place(place))
