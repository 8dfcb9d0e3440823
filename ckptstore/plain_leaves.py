"""What of a rank's sharded state is its own copy: which plain leaves has it, and are they those of the other ranks?

Plain is every leaf that is no piece of a tensor spread over ranks: numbers, strings, empty containers, and ordinary tensors. A rank's
*leaves* document says what they are, by place; values that are long stand there as a digest, tensors as their dtype, shape and digest:

    {"leaves": {place: text, …}, "tensors": {key: [dtype, [n, …], digest], …}}

Ranks whose plain leaves are equal have the same text. The daemon writes it from what it was handed, so that no rank hashes anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import orjson

from ckptstore.part import child_names, join_place
from ckptstore.part_reading import Selection, TensorRef, parse_part
from ckptstore.safetensors_format import Header, TensorEntry

#: Leaves of a part that need a framework to be decoded: they are compared as they are written.
FRAMEWORK_TAGS = ("$scalar", "$size", "$dtype", "$device")
_LONGEST_TEXT = 40


def leaf_texts(header: Header) -> dict[str, str]:
    """Place → what stands there, of all leaves but tensors. Parses the part document, strictly."""
    outline = parse_part(header, Selection(None), {tag: partial(_as_written, tag) for tag in FRAMEWORK_TAGS})
    return {place: text if len(text) <= _LONGEST_TEXT else _digest(text) for place, text in _texts(outline, None)}


def write_leaves(texts: Mapping[str, str], tensors: Mapping[str, tuple[TensorEntry, str]]) -> bytes:
    """The document. The tensors come with their digests."""
    described = {key: [entry.dtype, list(entry.shape), digest] for key, (entry, digest) in tensors.items()}
    return orjson.dumps({"leaves": dict(texts), "tensors": described}, option=orjson.OPT_SORT_KEYS)


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


