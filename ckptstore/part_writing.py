"""How is a rank's state taken apart? Into a part document and a list of tensors; see `part` for the grammar.

Nothing is written here, and whatever cannot be stored is refused by its place before anything is.
"""

from __future__ import annotations

import base64
import json
import math
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from operator import eq, itemgetter
from typing import Any

import orjson

from ckptstore.errors import NotStorable
from ckptstore.part import DOUBLE, KEY_TYPES, MAX_DEPTH, PART_FORMAT, LeafEncoder, child_names, join_place, shown_place

_SAFE_INT = 1 << 53


@dataclass
class Flattened:
    """A state taken apart: the document, and its tensors in the order of their places."""

    document: Any = None
    keys: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    #: the document's node of each tensor: tying two leaves means to name the same key in both
    nodes: list[dict[str, str]] = field(default_factory=list)



#: What walks remember of dicts with plain str keys, by place: the keys, the places of the children, and the nodes of those that were
#: tensors. 20,000 new nodes at each save would keep the garbage collector busy for longer than the copy takes.
Walked = dict[str | None, tuple[list[str], list[str], dict[str, dict[str, str]]]]
#: More dicts than this are not remembered.
_MAX_WALKED = 1 << 17


def flatten(
    state: Any, tensor_tags: Mapping[type, str], leaf_encoders: Mapping[type, LeafEncoder], walked: Walked | None = None
) -> Flattened:
    """The state as a document and a list of tensors. NotStorable, by place, for whatever the grammar lacks; nothing was written then.

    `walked`, given again with the next state, makes its walk a few times faster where the keys are the same; the documents of such
    walks share nodes, so one is used up before the next walk begins.
    """
    walk = _Flattener(tensor_tags, leaf_encoders, {} if walked is None else walked)
    walk.found.document = walk.node(state, None, 0)
    return walk.found


class _Flattener:
    """One walk. `_open` holds the ids of the containers around the present node, so that a cycle is seen."""

    def __init__(self, tensor_tags: Mapping[type, str], leaf_encoders: Mapping[type, LeafEncoder], walked: Walked) -> None:
        self.found = Flattened()
        self._tags = tensor_tags
        self._encoders = leaf_encoders
        self._walked = walked
        self._open: set[int] = set()

    def node(self, value: Any, place: str | None, depth: int) -> Any:
        kind = type(value)
        tag = self._tags.get(kind)
        if tag is not None:
            return self._tensor(tag, value, place)
        if kind is str:
            return value if value.isascii() else _checked_text(value, place)
        if kind is bool or value is None:
            return value
        if kind is int:
            return value if -_SAFE_INT < value < _SAFE_INT else {"$int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"$float": DOUBLE.pack(value).hex()}
        if kind in _CONTAINERS:
            return self._container(value, place, depth)
        if kind is bytes:
            return {"$bytes": base64.b64encode(value).decode("ascii")}
        if kind is complex:
            return {"$complex": (DOUBLE.pack(value.real) + DOUBLE.pack(value.imag)).hex()}
        encoder = self._encoders.get(kind)
        if encoder is not None:
            return encoder(value, shown_place(place))
        raise _not_storable(place, value)

    def _tensor(self, tag: str, value: Any, place: str | None) -> dict[str, str]:
        key = "tensor" if place is None else place
        node = {tag: key}
        found = self.found
        found.keys.append(key)
        found.values.append(value)
        found.nodes.append(node)
        return node

    def _container(self, value: Any, place: str | None, depth: int) -> Any:
        if id(value) in self._open:
            raise NotStorable("it contains itself", operation="save", subject=shown_place(place))
        if depth >= MAX_DEPTH:
            raise NotStorable(f"it is nested more than {MAX_DEPTH} deep", operation="save", subject=shown_place(place))
        self._open.add(id(value))
        if type(value) is list or type(value) is tuple:
            children = [self.node(child, join_place(place, str(i)), depth + 1) for i, child in enumerate(value)]
            node = children if type(value) is list else {"$tuple": children}
        else:
            node = self._mapping(value, place, depth)
        self._open.discard(id(value))
        return node

    def _children(self, places: list[str], values: Collection[Any], depth: int, nodes: dict[str, dict[str, str]]) -> list[Any]:
        """`node` of each; written out for tensors, of which there may be 20,000, with the `nodes` that they had before."""
        found, tags = self.found, self._tags
        kinds = set(map(type, values))
        if len(kinds) == 1 and (only := tags.get(kinds.pop())) is not None and _are_nodes_of(nodes, only, places):
            found.keys += places
            found.values += values
            found.nodes += nodes.values()
            return found.nodes[-len(places) :]
        children: list[Any] = []
        for place, value in zip(places, values, strict=True):
            tag = tags.get(type(value))
            if tag is None:
                children.append(self.node(value, place, depth + 1))
                continue
            node = nodes.get(place)
            if node is None or tag not in node:
                node = nodes[place] = {tag: place}
            else:
                node[tag] = place  # it may have been tied to another
            found.keys.append(place)
            found.values.append(value)
            found.nodes.append(node)
            children.append(node)
        return children

    def _mapping(self, value: dict[Any, Any], place: str | None, depth: int) -> Any:
        known = self._walked.get(place)
        if known is not None and type(value) is dict and known[0] == list(value) and set(map(type, value)) <= {str}:
            return dict(zip(known[0], self._children(known[1], value.values(), depth, known[2]), strict=True))
        plain = type(value) is dict
        for key in value:
            if type(key) is not str:
                plain = False
                _check_key(key, place)
            elif not key.isascii():
                _checked_text(key, place)
            if plain and key[:1] == "$":
                plain = False
        names = child_names(value)
        places = [join_place(None, name) for name in names] if place is None else [f"{place}/{name}" for name in names]
        nodes: dict[str, dict[str, str]] = {}
        children = self._children(places, value.values(), depth, nodes)
        if plain:
            if len(self._walked) < _MAX_WALKED:
                self._walked[place] = (list(value), places, nodes)
            return dict(zip(value, children, strict=True))
        pairs = [[self.node(key, place, depth + 1), child] for key, child in zip(value, children, strict=True)]
        return {"$dict" if type(value) is dict else "$ordered": pairs}


def _are_nodes_of(nodes: dict[str, dict[str, str]], tag: str, places: list[str]) -> bool:
    """Whether these are the nodes of such tensors, at these places in their order, none of them tied to another. No loop of Python."""
    try:
        return len(nodes) == len(places) and all(map(eq, map(itemgetter(tag), nodes.values()), places))
    except KeyError:  # it was of another framework
        return False


_CONTAINERS = frozenset({dict, list, tuple, OrderedDict})


def _checked_text(text: str, place: str | None) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise NotStorable("the text has lone surrogates, which UTF-8 cannot write", operation="save", subject=shown_place(place)) from error
    return text


def _check_key(key: Any, place: str | None) -> None:
    if type(key) not in KEY_TYPES or key != key:
        raise NotStorable(
            f"a key of this dict is {key!r:.80} of {type(key)}",
            operation="save",
            subject=shown_place(place),
            hint="keys may be str, int, bool, float (but not nan) and None",
        )


def _not_storable(place: str | None, value: Any) -> NotStorable:
    return NotStorable(
        repr(type(value)),
        operation="save",
        subject=shown_place(place),
        hint="a state holds dicts, lists, tuples, tensors, arrays, numbers, strings and bytes of exactly these types",
    )


def write_part(document: Any) -> str:
    """The document as the text that goes into the header's metadata."""
    whole = {"format": PART_FORMAT, "state": document}
    try:
        return orjson.dumps(whole).decode("utf-8")
    except orjson.JSONEncodeError:  # nested deeper than it goes
        return json.dumps(whole, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
