"""What of a trainer's state does the store have no words for, and how is it written without pickle?

The store keeps tensors, arrays, plain values, dicts, lists and tuples, and refuses everything else by its place. The states of schedulers,
samplers and callbacks have a little more: counters, sets, deques, paths, enums of text. `stored` writes those as a tuple of their kind and
plain values, and `restored` makes them again; a trainer adds a `Word` for each type of its own. Whatever is left is refused by the save, or
pickled if the user has asked for that; to read a pickled leaf takes the same consent, since unpickling runs whatever its writer put there.

Pure functions. Containers are copied, tensors are not.
"""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from ckptstore.errors import InvalidInput
from ckptstore_client.frameworks import leaf_encoders, tensor_tags
from ckptstore_client.sharding.spreading import spread_types

_MARK = "ckptstore:"
_PICKLE, _PATH = f"{_MARK}pickle", f"{_MARK}path"
_PLAIN: tuple[type, ...] = (str, int, bool, float, type(None), bytes, complex)


@dataclass(frozen=True)
class Word:
    """How values of exactly one type are written: as a tuple of `name` and what `plain` gives, from which `make` makes them again."""

    kind: type
    name: str
    plain: Callable[[Any], tuple[Any, ...]]
    make: Callable[..., Any]

    @property
    def mark(self) -> str:
        return f"{_MARK}{self.name}"


_WORDS = (
    Word(Counter, "counter", lambda value: (list(map(list, value.items())),), lambda pairs: Counter(dict(pairs))),
    Word(set, "set", lambda value: (list(value),), set),
    Word(frozenset, "frozenset", lambda value: (list(value),), frozenset),
    Word(deque, "deque", lambda value: (list(value), value.maxlen), deque),
)


def stored(state: Any, *, with_pickle: bool, words: Sequence[Word] = ()) -> Any:
    """`state` in the store's words and these; what has none stays as it is, or becomes its pickle."""
    known: frozenset[type] = frozenset({*_PLAIN, *tensor_tags(), *spread_types(), *leaf_encoders()})
    return _stored(state, known, {word.kind: word for word in (*_WORDS, *words)}, with_pickle)


def _stored(value: Any, known: frozenset[type], words: Mapping[type, Word], with_pickle: bool) -> Any:
    def inner(child: Any) -> Any:
        return _stored(child, known, words, with_pickle)

    kind = type(value)
    if kind in known:
        return value
    if kind is dict or kind is OrderedDict:
        return kind((key, inner(child)) for key, child in value.items())
    if kind is list:
        return [inner(child) for child in value]
    if kind is tuple:
        return tuple(map(inner, value))
    if kind in words:
        return (words[kind].mark, *map(inner, words[kind].plain(value)))
    if isinstance(value, PurePath):
        return (_PATH, str(value))
    if isinstance(value, Enum) and isinstance(value, str):
        return str(value.value)
    return (_PICKLE, pickle.dumps(value)) if with_pickle else value


def restored(value: Any, *, with_pickle: bool, place: str, words: Sequence[Word] = ()) -> Any:
    """What `stored` was given. InvalidInput, with the leaf's place, where it was pickled and that is not allowed now."""
    makers = {word.mark: word.make for word in (*_WORDS, *words)} | {_PATH: Path}
    return _restored(value, makers, with_pickle, place)


def _restored(value: Any, makers: Mapping[str, Callable[..., Any]], with_pickle: bool, place: str) -> Any:
    kind = type(value)
    if kind is dict or kind is OrderedDict:
        return kind((key, _restored(child, makers, with_pickle, f"{place}/{key}")) for key, child in value.items())
    if kind is not list and kind is not tuple:
        return value
    if kind is tuple and value and value[0] == _PICKLE:
        if not with_pickle:
            hint = "pickle=True runs what its writer put there"
            raise InvalidInput("it was stored as pickle", operation="load", subject=place, hint=hint)
        return pickle.loads(value[1])
    children = kind(_restored(child, makers, with_pickle, f"{place}/{index}") for index, child in enumerate(value))
    maker = makers.get(children[0]) if kind is tuple and children and type(children[0]) is str else None
    return children if maker is None else maker(*children[1:])
