"""How is a state put together again? From a part document to an outline: its nesting, with references where tensors belong.

A document from a file is data from outside: `parse_part` refuses by name (InvalidInput) whatever breaks the grammar, which stands in
`part`. Pure functions over values.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ckptstore.errors import InvalidInput
from ckptstore.part import (
    ARRAY,
    DOUBLE,
    KEY_TYPES,
    MAX_DEPTH,
    PART_FORMAT,
    PART_KEY,
    TORCH,
    LeafDecoder,
    child_names,
    join_place,
    shown_place,
)
from ckptstore.safetensors_format import Header


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
        if type(node) not in KEY_TYPES or node != node:
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
    value: float = DOUBLE.unpack(bytes.fromhex(payload))[0]
    return value


def _decode_complex(payload: str) -> complex:
    raw = bytes.fromhex(payload)
    if len(raw) != 2 * DOUBLE.size:
        raise ValueError("no complex number")
    return complex(DOUBLE.unpack(raw[:8])[0], DOUBLE.unpack(raw[8:])[0])


_LEAF_TAGS: dict[str, Callable[[Any], Any]] = {
    "$int": _decode_int,
    "$float": _decode_float,
    "$complex": _decode_complex,
    "$bytes": lambda payload: base64.b64decode(payload, validate=True),
}
