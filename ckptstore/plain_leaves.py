"""What of a rank's sharded state is its own copy: which plain leaves has it, and are they those of the other ranks?

Plain is every leaf that is no piece of a tensor spread over ranks: numbers, strings, empty containers, and ordinary tensors. A rank's
*leaves* document says what they are, by place; values that are long stand there as a digest, tensors as their dtype, shape and digest:

    {"leaves": {place: text, …}, "tensors": {key: [dtype, [n, …], digest], …}, "left_out": [key, …]}

`left_out` are tensors that this rank's file lacks, since another rank's has the same. Ranks whose plain leaves are equal have the same
text. The daemon writes it from what it was handed, so that no rank hashes anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from ckptstore.part import child_names, join_place
from ckptstore.part_reading import Selection, TensorRef, parse_part
from ckptstore.safetensors_format import Header

#: Leaves of a part that need a framework to be decoded: they are compared as they are written.
FRAMEWORK_TAGS = ("$scalar", "$size", "$dtype", "$device")
_LONGEST_TEXT = 40


def leaf_texts(header: Header) -> dict[str, str]:
    """Place → what stands there, of all leaves but tensors. Parses the part document, strictly."""
    outline = parse_part(header, Selection(None), {tag: partial(_as_written, tag) for tag in FRAMEWORK_TAGS})
    return {place: text if len(text) <= _LONGEST_TEXT else _digest(text) for place, text in _texts(outline, None)}


@dataclass(frozen=True)
class Content:
    """What a plain tensor holds: two of one key that are equal in these are the same tensor."""

    dtype: str
    shape: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class Leaves:
    """What a rank's document says."""

    texts: Mapping[str, str]
    tensors: Mapping[str, Content]
    left_out: frozenset[str] = frozenset()


def write_leaves(leaves: Leaves) -> bytes:
    tensors = {key: [found.dtype, list(found.shape), found.digest] for key, found in leaves.tensors.items()}
    document = {"leaves": dict(leaves.texts), "tensors": tensors, "left_out": sorted(leaves.left_out)}
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def read_leaves(document: bytes) -> Leaves:
    """A document that the daemon wrote."""
    said = orjson.loads(document)
    tensors = {key: Content(dtype, tuple(shape), digest) for key, (dtype, shape, digest) in said["tensors"].items()}
    return Leaves(said["leaves"], tensors, frozenset(said["left_out"]))


def _texts(outline: Any, place: str | None) -> Iterator[tuple[str, str]]:
    if type(outline) is TensorRef:
        return
    if isinstance(outline, dict) and outline:
        for name, child in zip(child_names(outline), outline.values(), strict=True):
            yield from _texts(child, join_place(place, name))
    elif type(outline) in (list, tuple) and outline:
        for position, child in enumerate(outline):
            yield from _texts(child, join_place(place, str(position)))
    else:
        yield place or "", f"{type(outline).__name__} {outline!r}"


def _as_written(tag: str, payload: Any, place: str) -> str:
    return tag + json.dumps(payload)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


