"""What was a rank's state, beside the bytes of its tensors? A part document: JSON in the header of the rank's safetensors file.

It stands in the header's metadata under `ckptstore`, in each rank's own file, since a rank reads only its own part: one central index with
every tensor of 8,192 ranks would be hundreds of megabytes that each of them reads. The grammar, which has no pickle:

    null, true, false, a string, an integer below 2**53, a finite float     themselves
    [node, …]                                                                a list
    {name: node, …}                  a dict with str keys, none of which begins with "$", in order
    {"$dict": [[key, node], …]}      any other dict; a key is a str, int, bool, float or None
    {"$ordered": [[key, node], …]}   an OrderedDict
    {"$tuple": [node, …]}            a tuple
    {"$int": "0x…"} {"$float": "16 hex digits"} {"$complex": "32 hex digits"} {"$bytes": "base64"}
    {"$size": [n, …]} {"$dtype": "float32"} {"$device": "cuda:0"}            torch.Size, torch.dtype, torch.device
    {"$scalar": ["float32", "base64"]}                                       a numpy scalar
    {"$torch": key} {"$array": key}                                          a torch tensor, a numpy array, by its key in the header

Leaves that are the same tensor name the same key: stored once, tied again. A leaf's *place* is the path to it, joined with "/";
"/" and "%" in a name are percent-escaped, and a str name that a number in the same dict is also written as gets its first byte
escaped, so that places are unique. A tensor's key is the place where it was met first. Exact types only: a subclass would come
back as something else.

Pure functions over values. A document from a file is data from outside: `parse_part` refuses by name (InvalidInput) whatever
breaks the grammar.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import orjson

from ckptstore.errors import InvalidInput, NotStorable
from ckptstore.safetensors_format import Header

PART_KEY = "ckptstore"
PART_FORMAT = "ckptstore-part/1"
#: Nesting beyond this is refused on both ways: deeper states do not exist, and recursion must end.
MAX_DEPTH = 100
TORCH, ARRAY = "$torch", "$array"
_DOUBLE = struct.Struct(">d")
_SAFE_INT = 1 << 53

#: A leaf that a framework knows → its node; raises NotStorable with the place. The client brings these, this module imports no framework.
LeafEncoder = Callable[[Any, str], Any]
#: (payload, place) → the leaf, for the tags that need a framework.
LeafDecoder = Callable[[Any, str], Any]


class Absent:
    """Stands in an outline where `only` matched nothing."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = Absent()


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Stands in an outline where a tensor belongs."""

    tag: str  # TORCH or ARRAY
    key: str


@dataclass
class Flattened:
    """A state taken apart: the document, and its tensors in the order of their places."""

    document: Any = None
    keys: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    #: the document's node of each tensor: tying two leaves means to name the same key in both
    nodes: list[dict[str, str]] = field(default_factory=list)


# --- names and places ------------------------------------------------------------------------------------------------------------------


def escape(name: str) -> str:
    return name.replace("%", "%25").replace("/", "%2F") if "/" in name or "%" in name else name


def _rendered(key: Any) -> str:
    return escape(key) if type(key) is str else str(key)


def child_names(keys: Iterable[Any]) -> list[str]:
    """How the keys of one dict are written in places: unique, and as the user would write them."""
    keys = list(keys)
    names = [_rendered(key) for key in keys]
    if len(set(names)) != len(names):
        numbers = {str(key) for key in keys if type(key) is not str}
        names = [f"%{ord(n[0]):02X}{n[1:]}" if type(k) is str and n in numbers else n for k, n in zip(keys, names, strict=True)]
    return names


def join_place(parent: str | None, name: str) -> str:
    """The place of a child; `parent` is None for the state itself. `__metadata__` alone would be no tensor's name in safetensors."""
    if parent is None:
        return name if name != "__metadata__" else "%5F_metadata__"
    return f"{parent}/{name}"


def shown_place(place: str | None) -> str:
    return "the state itself" if place is None else repr(place) if place == "" else place


# --- taking a state apart ----------------------------------------------------------------------------------------------------------------


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
            return value if math.isfinite(value) else {"$float": _DOUBLE.pack(value).hex()}
        if kind in _CONTAINERS:
            return self._container(value, place, depth)
        if kind is bytes:
            return {"$bytes": base64.b64encode(value).decode("ascii")}
        if kind is complex:
            return {"$complex": (_DOUBLE.pack(value.real) + _DOUBLE.pack(value.imag)).hex()}
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

    def _children(self, places: list[str], values: Iterable[Any], depth: int, nodes: dict[str, dict[str, str]]) -> list[Any]:
        """`node` of each; written out for tensors, of which there may be 20,000, with the `nodes` that they had before."""
        found, tags = self.found, self._tags
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


_CONTAINERS = frozenset({dict, list, tuple, OrderedDict})
_KEY_TYPES = frozenset({str, int, bool, float, type(None)})


def _checked_text(text: str, place: str | None) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise NotStorable("the text has lone surrogates, which UTF-8 cannot write", operation="save", subject=shown_place(place)) from error
    return text


def _check_key(key: Any, place: str | None) -> None:
    if type(key) not in _KEY_TYPES or key != key:
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


# --- putting it together again -----------------------------------------------------------------------------------------------------------


class Selection:
    """Which leaves `only` asks for: any of some patterns over places, as fnmatchcase reads them."""

    def __init__(self, only: str | Iterable[str] | None) -> None:
        patterns = (only,) if isinstance(only, str) else tuple(only) if only is not None else ("*",)
        if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
            raise InvalidInput("only is a pattern or several, such as 'model/*'", operation="load", subject=repr(only)[:120])
        self._patterns = patterns
        self.everything = "*" in patterns

    def takes(self, place: str) -> bool:
        return self.everything or any(fnmatchcase(place, pattern) for pattern in self._patterns)


def parse_part(header: Header, selection: Selection, decoders: Mapping[str, LeafDecoder]) -> Any:
    """The outline of a state: its nesting with TensorRef where tensors belong, and ABSENT where nothing was selected.

    `decoders` make the leaves that need a framework (`$size`, `$dtype`, `$device`, `$scalar`). InvalidInput, by place, for what
    breaks the grammar.
    """
    text = header.metadata.get(PART_KEY)
    if text is None:
        raise _broken("the file has no part document: ckptstore did not write it", None)
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except InvalidInput:
        raise
    except (ValueError, RecursionError) as error:
        raise _broken(f"the part document is no JSON: {str(error)[:120]}", None) from error
    if not isinstance(document, dict) or document.get("format") != PART_FORMAT or document.keys() != {"format", "state"}:
        raise _broken(f"the part document is not of format {PART_FORMAT}", None)
    return _Parser(header, selection, decoders).outline(document["state"], None, 0)


def _no_constant(text: str) -> Any:
    raise _broken(f"{text} is no JSON", None)


def _broken(why: str, place: str | None) -> InvalidInput:
    return InvalidInput(why, operation="read part", subject=None if place is None else place[:200])


class _Parser:
    def __init__(self, header: Header, selection: Selection, decoders: Mapping[str, LeafDecoder]) -> None:
        self._header = header
        self._selection = selection
        self._decoders = decoders
        self._tags: dict[str, Callable[[Any, str | None, int], Any]] = {
            "$dict": lambda pairs, place, depth: self._pairs(pairs, place, depth, dict),
            "$ordered": lambda pairs, place, depth: self._pairs(pairs, place, depth, OrderedDict),
            "$tuple": self._tuple,
        }

    def outline(self, node: Any, place: str | None, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise _broken(f"it is nested more than {MAX_DEPTH} deep", place)
        if isinstance(node, list):
            return self._list(node, place, depth)
        if not isinstance(node, dict):
            return self._leaf(node, place, node)
        tag = next((name for name in node if name.startswith("$")), None)
        if tag is None:
            return self._mapping(list(node), list(node.values()), place, depth, dict)
        if len(node) != 1:
            raise _broken(f"{tag[:40]} stands beside other names", place)
        payload = node[tag]
        if tag in self._tags:
            return self._tags[tag](payload, place, depth)
        if tag in (TORCH, ARRAY):
            return self._leaf(payload, place, self._reference(tag, payload, place))
        return self._leaf(payload, place, lambda: self._tagged_leaf(tag, payload, place))

    def _leaf(self, payload: Any, place: str | None, value: Any) -> Any:
        """A selected leaf. A leaf that must be decoded comes as a call; it is checked even where it is not selected."""
        made = value() if callable(value) else value
        return made if self._selection.takes(place or "") else ABSENT

    def _reference(self, tag: str, key: Any, place: str | None) -> TensorRef:
        if not isinstance(key, str) or key not in self._header.tensors:
            raise _broken(f"it names the tensor {str(key)[:80]!r}, which the header lacks", place)
        return TensorRef(tag, key)

    def _tagged_leaf(self, tag: str, payload: Any, place: str | None) -> Any:
        if tag in _LEAF_TAGS:
            try:
                return _LEAF_TAGS[tag](payload)
            except (TypeError, ValueError, binascii.Error, struct.error, AttributeError) as error:
                raise _broken(f"{tag} cannot be {str(payload)[:80]!r}", place) from error
        decoder = self._decoders.get(tag)
        if decoder is None:
            raise _broken(f"{tag[:40]} is unknown", place)
        return decoder(payload, shown_place(place))

    def _list(self, nodes: list[Any], place: str | None, depth: int) -> Any:
        children = [self.outline(node, join_place(place, str(i)), depth + 1) for i, node in enumerate(nodes)]
        if self._selection.everything or (not nodes and self._selection.takes(place or "")):
            return children
        return _kept(children)

    def _tuple(self, nodes: Any, place: str | None, depth: int) -> Any:
        if not isinstance(nodes, list):
            raise _broken("$tuple is no list", place)
        children = self._list(nodes, place, depth)
        return children if children is ABSENT else tuple(children)

    def _pairs(self, pairs: Any, place: str | None, depth: int, kind: type[dict[Any, Any]]) -> Any:
        if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise _broken("a dict is not a list of pairs", place)
        keys = [self._key(key, place) for key, _ in pairs]
        if len({(type(key), key) for key in keys}) != len(keys) or len(set(keys)) != len(keys):
            raise _broken("a dict has the same key twice", place)
        return self._mapping(keys, [node for _, node in pairs], place, depth, kind)

    def _key(self, node: Any, place: str | None) -> Any:
        if isinstance(node, dict) and len(node) == 1 and next(iter(node)) in ("$int", "$float"):
            tag = next(iter(node))
            node = self._tagged_leaf(tag, node[tag], place)
        if type(node) not in _KEY_TYPES or node != node:
            raise _broken(f"{str(node)[:80]!r} cannot be a key", place)
        return node

    def _mapping(self, keys: list[Any], nodes: list[Any], place: str | None, depth: int, kind: type[dict[Any, Any]]) -> Any:
        made = kind()
        for key, name, node in zip(keys, child_names(keys), nodes, strict=True):
            child = self.outline(node, join_place(place, name), depth + 1)
            if child is not ABSENT:
                made[key] = child
        return made if made or self._selection.everything or (not keys and self._selection.takes(place or "")) else ABSENT


def _kept(children: list[Any]) -> Any:
    return ABSENT if all(child is ABSENT for child in children) else children


def _decode_int(payload: str) -> int:
    if not isinstance(payload, str) or not payload.lower().lstrip("-").startswith("0x"):
        raise ValueError("no hexadecimal number")
    return int(payload, 16)


def _decode_float(payload: str) -> float:
    value: float = _DOUBLE.unpack(bytes.fromhex(payload))[0]
    return value


def _decode_complex(payload: str) -> complex:
    raw = bytes.fromhex(payload)
    if len(raw) != 2 * _DOUBLE.size:
        raise ValueError("no complex number")
    return complex(_DOUBLE.unpack(raw[:8])[0], _DOUBLE.unpack(raw[8:])[0])


_LEAF_TAGS: dict[str, Callable[[Any], Any]] = {
    "$int": _decode_int,
    "$float": _decode_float,
    "$complex": _decode_complex,
    "$bytes": lambda payload: base64.b64decode(payload, validate=True),
}
