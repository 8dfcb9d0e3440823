"""Where do a rank's tensors lie, when some of them are in the objects of earlier checkpoints? The layout of an incremental save.

Its file is an ordinary safetensors file of the tensors that changed. Beside the part document stands, in the header's metadata under
`ckptstore.layout`:

    {"format": "ckptstore-layout/1", "objects": [id, …],
     "digests": {key: digest, …},                                  of the tensors in this file
     "elsewhere": {key: [dtype, [n, …], digest, i, start], …}}     of the others: in the object objects[i], from byte `start` of it

A digest is XXH3-128 over the tensor's bytes, 32 hexadecimal digits: what the next save is compared with. An entry names the object that
holds the bytes, also when the checkpoint before it referred to that one, too: nothing is followed further. The document lies in the
object, in every tier that holds it and under its checksums, so it is lost only with the checkpoint.

Two tensors of one size and digest are taken for the same. That is sound against accidents (2^-128 a pair), and not against somebody who
makes collisions on purpose: XXH3 is no cryptographic hash. Whoever may save into a store is trusted by those who save into it.

Pure functions over values. `read_layout` is strict: InvalidInput for a document that breaks a rule.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckptstore.errors import InvalidInput
from ckptstore.paths import is_id
from ckptstore.safetensors_format import MAX_DIMENSIONS, Header, TensorEntry, tensor_size_bytes

LAYOUT_KEY = "ckptstore.layout"
LAYOUT_FORMAT = "ckptstore-layout/1"
_DIGEST = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A tensor in another object; `entry` counts bytes from that object's beginning."""

    entry: TensorEntry
    digest: str
    object_id: str


@dataclass(frozen=True)
class Layout:
    """All tensors of a rank: `own` are those in its file, by key with their digests."""

    own: Mapping[str, str]
    elsewhere: Mapping[str, Elsewhere]


def write_layout(layout: Layout) -> str:
    """The document as the text that goes into the header's metadata."""
    positions: dict[str, int] = {}
    elsewhere = {}
    for key, found in layout.elsewhere.items():
        position = positions.setdefault(found.object_id, len(positions))
        elsewhere[key] = [found.entry.dtype, list(found.entry.shape), found.digest, position, found.entry.start]
    document = {"format": LAYOUT_FORMAT, "objects": list(positions), "digests": dict(layout.own), "elsewhere": elsewhere}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def read_layout(header: Header) -> Layout | None:
    """The layout of a file; None if it holds all of its rank's tensors itself and says nothing of digests."""
    text = header.metadata.get(LAYOUT_KEY)
    if text is None:
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(f"it is no JSON: {str(error)[:120]}") from error
    if not isinstance(document, dict) or document.keys() != {"format", "objects", "digests", "elsewhere"}:
        raise _broken("it needs exactly format, objects, digests and elsewhere")
    if document["format"] != LAYOUT_FORMAT:
        raise _broken(f"it is not of format {LAYOUT_FORMAT}")
    objects, digests, elsewhere = document["objects"], document["digests"], document["elsewhere"]
    if not isinstance(objects, list) or not all(isinstance(item, str) and is_id(item) for item in objects):
        raise _broken("the objects are no list of ids")
    if not isinstance(digests, dict) or digests.keys() != header.tensors.keys() or not all(map(_is_digest, digests.values())):
        raise _broken("it does not give the digest of each tensor in the file")
    if not isinstance(elsewhere, dict) or elsewhere.keys() & header.tensors.keys():
        raise _broken("a tensor stands both in the file and elsewhere")
    layout = Layout(digests, {key: _elsewhere(key, value, objects) for key, value in elsewhere.items()})
    _refuse_overlaps(layout)
    return layout


def with_all_tensors(header: Header, layout: Layout) -> Header:
    """The header as if all tensors were in the file, for what needs their names and shapes; where they lie is the layout's."""
    return Header(header.tensors | {key: found.entry for key, found in layout.elsewhere.items()}, header.metadata, header.data_start)


def _elsewhere(key: str, value: Any, objects: list[str]) -> Elsewhere:
    if not isinstance(value, list) or len(value) != 5:
        raise _broken("it is no list of five", key)
    dtype, shape, digest, position, start = value
    if not isinstance(dtype, str) or not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_count, shape)):
        raise _broken("dtype and shape are none", key)
    if not _is_digest(digest) or not _is_count(start) or not _is_count(position) or position >= len(objects):
        raise _broken("digest, object or start are none", key)
    entry = TensorEntry(key, dtype, tuple(shape), start, start + tensor_size_bytes(dtype, shape))
    if entry.end >= 1 << 63:
        raise _broken("it is larger than any file", key)
    return Elsewhere(entry, digest, objects[position])


def _refuse_overlaps(layout: Layout) -> None:
    """No byte is two tensors': whoever reads an object's pieces in order may rely on it."""
    last_object, last_end = "", 0
    for found in sorted(layout.elsewhere.values(), key=lambda found: (found.object_id, found.entry.start, found.entry.end)):
        if found.object_id == last_object and found.entry.start < last_end:
            raise _broken("two tensors lie in one place", found.entry.key)
        last_object, last_end = found.object_id, found.entry.end


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _broken(why: str, key: str | None = None) -> InvalidInput:
    return InvalidInput(why, operation="read layout", subject=None if key is None else repr(key[:120]))
