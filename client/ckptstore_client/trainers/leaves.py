"""What of a trainer's state does the store have no words for, and how is it written without pickle?

The store keeps tensors, arrays, plain values, dicts, lists and tuples, and refuses everything else by its place. The states of schedulers,
samplers and callbacks have a little more: counters, sets, deques, paths, enums of text. `stored` writes those as a tuple of their kind and
plain values, and `restored` makes them again. Whatever is left is refused by the save, or pickled if the user has asked for that; to read a
pickled leaf takes the same consent, since unpickling runs whatever its writer put there.

Pure functions. Containers are copied, tensors are not.
"""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from ckptstore.errors import InvalidInput
from ckptstore_client.frameworks import leaf_encoders, tensor_tags

_MARK = "ckptstore:"
_PICKLE = f"{_MARK}pickle"
_PLAIN: tuple[type, ...] = (str, int, bool, float, type(None), bytes, complex)


def stored(state: Any, *, with_pickle: bool) -> Any:
    """`state` in the store's words; what has none stays as it is, or becomes its pickle."""
    known: frozenset[type] = frozenset({*_PLAIN, *tensor_tags(), *leaf_encoders()})
    return _stored(state, known, with_pickle)


def _stored(value: Any, known: frozenset[type], with_pickle: bool) -> Any:
    def inner(child: Any) -> Any:
        return _stored(child, known, with_pickle)

    kind = type(value)
    if kind in known:
        return value
    if kind is dict or kind is OrderedDict:
        return kind((key, inner(child)) for key, child in value.items())
    if kind is list:
        return [inner(child) for child in value]
    if kind is tuple:
        return tuple(map(inner, value))
    if kind is Counter:
        return (f"{_MARK}counter", [[inner(key), count] for key, count in value.items()])
    if kind is set or kind is frozenset:
        return (f"{_MARK}{kind.__name__}", [inner(child) for child in value])
    if kind is deque:
        return (f"{_MARK}deque", [inner(child) for child in value], value.maxlen)
    if isinstance(value, PurePath):
        return (f"{_MARK}path", str(value))
    if isinstance(value, Enum) and isinstance(value, str):
        return str(value.value)
    return (_PICKLE, pickle.dumps(value)) if with_pickle else value


_MAKERS: dict[str, Callable[..., Any]] = {
    f"{_MARK}counter": lambda pairs: Counter(dict(pairs)),
    f"{_MARK}set": set,
    f"{_MARK}frozenset": frozenset,
    f"{_MARK}deque": deque,
    f"{_MARK}path": Path,
}


def restored(value: Any, *, with_pickle: bool, place: str) -> Any:
    """What `stored` was given. InvalidInput, with the leaf's place, where it was pickled and that is not allowed now."""
    kind = type(value)
    if kind is dict or kind is OrderedDict:
        return kind((key, restored(child, with_pickle=with_pickle, place=f"{place}/{key}")) for key, child in value.items())
    if kind is not list and kind is not tuple:
        return value
    if kind is tuple and value and value[0] == _PICKLE:
        if not with_pickle:
            hint = "pickle=True runs what its writer put there"
            raise InvalidInput("it was stored as pickle", operation="load", subject=place, hint=hint)
        return pickle.loads(value[1])
    children = kind(restored(child, with_pickle=with_pickle, place=f"{place}/{index}") for index, child in enumerate(value))
    maker = _MAKERS.get(children[0]) if kind is tuple and children and type(children[0]) is str else None
    return children if maker is None else maker(*children[1:])
