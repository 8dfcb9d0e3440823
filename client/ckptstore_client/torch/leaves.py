"""What becomes of leaves that JSON cannot hold? They are refused by their place, unless the user has opted in to pickle.

DCP passes non-tensor leaves as bytes of `torch.save`, which is pickle. Here they are stored as what they are, and only objects that the
part document has no node for are pickled, one by one, where that was asked for. Reading such a leaf needs the same consent: unpickling
runs whatever its writer put there.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any

from ckptstore.errors import InvalidInput
from ckptstore_client.frameworks import leaf_encoders, tensor_tags
from ckptstore_client.sharding.spreading import spread_types

#: A pickled leaf is a tuple of this and its bytes: DCP's planner takes dicts and lists apart, and leaves tuples as they are.
PICKLED = "ckptstore:pickle"
_PLAIN: frozenset[type] = frozenset({str, int, bool, float, type(None), bytes, complex})


def with_pickled_leaves(state: Any) -> Any:
    """The state with a tuple of its pickle in place of each leaf that the store has no words for. Containers on the way are copied."""
    return _encoded(state, frozenset({*_PLAIN, *tensor_tags(), *spread_types(), *leaf_encoders()}))


def _encoded(value: Any, known: frozenset[type]) -> Any:
    kind = type(value)
    if kind is dict or kind is OrderedDict:
        return kind((key, _encoded(child, known)) for key, child in value.items())
    if kind is list or kind is tuple:
        return kind(_encoded(child, known) for child in value)
    return value if kind in known else (PICKLED, pickle.dumps(value))


def without_pickled_leaves(value: Any, allowed: bool, fqn: str) -> Any:
    """A leaf that was read, unpickled where it was pickled; InvalidInput if that is not allowed."""
    kind = type(value)
    if kind is tuple and len(value) == 2 and value[0] == PICKLED and type(value[1]) is bytes:
        if not allowed:
            hint = "Reader(…, pickle=True) runs what its writer put there"
            raise InvalidInput("it was stored as pickle", operation="load", subject=fqn, hint=hint)
        return pickle.loads(value[1])
    if kind is dict or kind is OrderedDict:
        return kind((key, without_pickled_leaves(child, allowed, fqn)) for key, child in value.items())
    if kind is list or kind is tuple:
        return kind(without_pickled_leaves(child, allowed, fqn) for child in value)
    return value
