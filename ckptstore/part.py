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

`part_writing` takes a state apart, `part_reading` puts it together again; here is what both speak of: tags, names and places. Pure
functions over values.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

PART_KEY = "ckptstore"
PART_FORMAT = "ckptstore-part/1"
#: Nesting beyond this is refused on both ways: deeper states do not exist, and recursion must end.
MAX_DEPTH = 100
TORCH, ARRAY = "$torch", "$array"
#: a float, as the 16 hex digits of one that JSON cannot say
DOUBLE = struct.Struct(">d")
KEY_TYPES = frozenset({str, int, bool, float, type(None)})

#: A leaf that a framework knows → its node; raises NotStorable with the place. The client brings these, this module imports no framework.
LeafEncoder = Callable[[Any, str], Any]
#: (payload, place) → the leaf, for the tags that need a framework.
LeafDecoder = Callable[[Any, str], Any]


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
