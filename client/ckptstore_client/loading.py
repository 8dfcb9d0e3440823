"""How does a rank's file become a state again? Outline first, destinations second, bytes last.

The header (verified like everything else) gives the outline of the state. New tensors are made, or those of `into` are checked
against it, every one of them, before the first byte of data is read into them; `filling` reads. Of an incremental checkpoint, what its
file lacks is read, in the same way, from the objects that the file's header names, one after the other.

A load that fails in the middle leaves `into` partly filled; it never returns it. Pure but for the reading; one call, one thread,
beside the reader's own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from ckptstore.errors import InvalidInput
from ckptstore.part import child_names, join_place, shown_place
from ckptstore.part_reading import ABSENT, Selection, TensorRef, parse_part
from ckptstore.safetensors_format import Header
from ckptstore_client.filling import fill, read_new
from ckptstore_client.frameworks import framework, leaf_decoders, tensor_tags
from ckptstore_client.rank_file import OpenObject, RankFile, nothing_else
from ckptstore_client.reading import VerifiedObject


def load_state(
    reader: VerifiedObject,
    into: Any,
    only: str | Sequence[str] | None,
    open_object: OpenObject = nothing_else,
    *,
    mapped: bool = False,
) -> Any:
    """The state in `reader`'s file, or `into` filled with it. InvalidInput, by place, where `into` does not fit.

    `mapped`: new tensors are the files' own bytes, where they can be mapped.
    """
    file = RankFile.of(reader, open_object)
    outline = parse_part(file.header, Selection(only), leaf_decoders())
    if into is None:
        return assembled(outline, read_new(file, set(references(outline)), mapped=mapped))
    match = Match(file.header, tensor_tags())
    match.check(into, outline, None)
    if only is None:
        match.check_extra(into, outline, None)
    fill(file, match.destinations)
    return updated(into, outline)


# --- the structure ----------------------------------------------------------------------------------------------------


def references(outline: Any) -> Iterator[TensorRef]:
    if type(outline) is TensorRef:
        yield outline
    elif isinstance(outline, dict):
        for child in outline.values():
            yield from references(child)
    elif type(outline) in (list, tuple):
        for child in outline:
            yield from references(child)


def assembled(outline: Any, tensors: Mapping[TensorRef, Any]) -> Any:
    """The outline with its tensors, and None in place of what was not selected in a list or tuple, or at all."""
    kind = type(outline)
    if kind is TensorRef:
        return tensors[outline]
    if outline is ABSENT:
        return None
    if kind is dict or kind is OrderedDict:
        for key, child in outline.items():
            outline[key] = assembled(child, tensors)
        return outline
    if kind is list:
        return [assembled(child, tensors) for child in outline]
    if kind is tuple:
        return tuple([assembled(child, tensors) for child in outline])
    return outline


def updated(value: Any, outline: Any) -> Any:
    """What belongs in the place of `value`: itself with new scalars inside, or the new scalar. Tensors are filled already."""
    if outline is ABSENT or type(outline) is TensorRef:
        return value
    if isinstance(outline, dict):
        for key, child in outline.items():
            if key in value:
                value[key] = updated(value[key], child)
        return value
    if type(outline) is list:
        for position, child in enumerate(outline):
            value[position] = updated(value[position], child)
        return value
    if type(outline) is tuple:
        children = tuple(updated(old, child) for old, child in zip(value, outline, strict=True))
        return value if all(new is old for new, old in zip(children, value, strict=True)) else children
    return outline


_MAPPINGS = (dict, OrderedDict)


class Match:
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
            if key in value:
                self.check(value[key], child, join_place(place, name))
            else:
                self._missing(join_place(place, name))

    def _missing(self, place: str) -> None:
        raise _unfit("it is stored, and missing here", place)

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
        self._check_kind(value, ref, place)
        target = framework(ref.tag)
        target.check_destination(value, self._header.tensors[ref.key], shown_place(place))
        known = self._seen.setdefault((ref.tag, target.same_tensor(value)), ref.key)
        if known != ref.key:
            raise _unfit(f"it is tied to another tensor here, but was stored apart from it (as {known!r})", place)
        if not any(value is other for other in self.destinations.setdefault(ref, [])):
            self.destinations[ref].append(value)

    def _check_kind(self, value: Any, ref: TensorRef, place: str | None) -> None:
        if self._tags.get(type(value)) != ref.tag:
            raise _unfit(f"stored is {'a torch tensor' if ref.tag == '$torch' else 'a numpy array'}, not {_told(value)}", place)


def _told(value: Any) -> str:
    size = f" of {len(value)}" if isinstance(value, dict | list | tuple) else ""
    return f"{type(value)!r}{size}"


def _unfit(why: str, place: str | None) -> InvalidInput:
    return InvalidInput(why, operation="load into", subject=shown_place(place))
