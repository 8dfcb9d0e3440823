"""JAX pytrees, with arrays that are spread over devices and processes: `save_tree`, `load_tree`.

    pending = ckptstore_client.jax.save_tree(store, "/runs/x/step-100", {"params": params, "opt": opt_state, "step": 100})
    state = ckptstore_client.jax.load_tree(store, "/runs/x/@latest", like=state)

A jax.Array says itself which boxes of it lie on this process's devices and which of several copies they are, so each box is stored once
over all processes, without a collective. Loading goes the other way: each device's box of `like`'s sharding is read, and only that,
whatever mesh it was saved from. Leaves that are no arrays are stored as `Store.save` stores them. A checkpoint of this module is an
ordinary one: each leaf lies at the place of its path in the tree, and `Store.load` gives numpy arrays.

`save_tree` returns when the arrays are copied; donating or deleting them afterwards is safe. Imports jax; any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from ckptstore.boxes import Box
from ckptstore.errors import InvalidInput, NotStorable
from ckptstore.part import ARRAY, escape
from ckptstore.part_reading import Selection, TensorRef
from ckptstore_client.frameworks import framework
from ckptstore_client.pending import PendingCheckpoint
from ckptstore_client.sharding.filling_boxes import Want, fill_boxes
from ckptstore_client.sharding.loading import PerRanks, refuse
from ckptstore_client.sharding.pieces import ArrayPieces
from ckptstore_client.store import Store
from ckptstore_client.tensors_numpy import add_dtypes, dtype_name

#: numpy has no name for these; jax's arrays have them.
add_dtypes({"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2})
_PLAIN = (str, int, bool, float, type(None), bytes, complex)


def save_tree(store: Store, path: str, tree: Any, **options: Any) -> PendingCheckpoint:
    """Save a pytree. With several processes, each calls it; `options` are those of `Store.save`."""
    processes = jax.process_count()
    if processes > 1:
        options = {"rank": jax.process_index(), "world_size": processes, **options}
    state: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: leaf is None)[0]:
        node = state
        *above, last = _names(keys)
        for name in above:
            node = node.setdefault(name, {})
        if not isinstance(node, dict) or last in node:
            raise NotStorable("two leaves of the tree have this path", operation="save", subject="/".join(map(str, _names(keys))))
        node[last] = _stored(leaf, "/".join(map(str, _names(keys))))
    return store.save(path, state, **{"shards": {}, **options})


def load_tree(
    store: Store,
    path: str,
    like: Any,
    *,
    rank: int | None = None,
    per_rank: PerRanks = None,
) -> Any:
    """A tree of `like`'s structure: arrays with its shapes, dtypes and shardings (jax.ShapeDtypeStruct will do), other leaves as stored."""
    checkpoint, share = store.open_sharded(path, rank=rank, per_rank=per_rank)
    with checkpoint:
        outline, header = checkpoint.outline(Selection(None), share)
        leaves, structure = jax.tree_util.tree_flatten_with_path(like, is_leaf=lambda leaf: leaf is None)
        wants: list[Want] = []
        made: list[Any] = []
        for keys, leaf in leaves:
            place = "/".join(escape(str(name)) for name in _names(keys))
            found = _at(outline, _names(keys), place)
            if type(found) is not TensorRef:
                refuse(found)
                made.append(found)
                continue
            spread = checkpoint.spread(found.key, header)
            boxes = _wanted(leaf, spread.shape, spread.dtype, place)
            wants += [Want(spread, box, framework(ARRAY), memory) for box, memory in boxes.items()]
            made.append((leaf, boxes))
        fill_boxes((want for want in wants if want.box.volume), checkpoint.part)
    return jax.tree_util.tree_unflatten(structure, [_array(*one) if type(one) is tuple else one for one in made])


# --- leaves -------------------------------------------------------------------------------------------------------------


def _names(keys: Iterable[Any]) -> list[Any]:
    """The path of a leaf, as the names of nested dicts."""
    return [next((getattr(key, field) for field in ("key", "name", "idx") if hasattr(key, field)), str(key)) for key in keys] or ["tree"]


def _stored(leaf: Any, place: str) -> Any:
    if isinstance(leaf, jax.Array):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise NotStorable(f"{leaf.dtype} is no array of numbers", operation="save", subject=place, hint="save jax.random.key_data(key)")
        pieces = {
            _box(shard.index, leaf.shape): np.asarray(shard.data) for shard in leaf.addressable_shards if shard.replica_id == 0
        }
        return ArrayPieces(tuple(leaf.shape), dtype_name(leaf.dtype, place), list(pieces.items()))
    if isinstance(leaf, np.ndarray | np.generic) or type(leaf) in _PLAIN:
        return leaf
    raise NotStorable(repr(type(leaf)), operation="save", subject=place, hint="leaves are arrays, numbers, strings, bytes and None")


def _box(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> Box:
    """What a device has: None says that it has all."""
    bounds = [part.indices(length)[:2] for part, length in zip(index or (slice(None),) * len(shape), shape, strict=True)]
    return Box(tuple(start for start, _ in bounds), tuple(stop - start for start, stop in bounds))


def _at(outline: Any, names: list[Any], place: str) -> Any:
    for name in names:
        if not isinstance(outline, dict) or name not in outline:
            raise InvalidInput("it is here, and not stored", operation="load tree", subject=place)
        outline = outline[name]
    return outline


def _wanted(leaf: Any, shape: tuple[int, ...], dtype: str, place: str) -> dict[Box, np.ndarray[Any, Any]]:
    """The boxes of a leaf's devices here, each once, with memory for them."""
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise InvalidInput(f"stored is an array, not {type(leaf)!r:.80}", operation="load tree", subject=place)
    if tuple(leaf.shape) != shape or dtype_name(np.dtype(leaf.dtype), place) != dtype:
        why = f"it is {leaf.dtype} of {tuple(leaf.shape)}, stored is {dtype} of {shape}"
        raise InvalidInput(why, operation="load tree", subject=place)
    sharding = getattr(leaf, "sharding", None)
    indices = [(slice(None),) * len(shape)] if sharding is None else sharding.addressable_devices_indices_map(shape).values()
    return {box: np.empty(box.size, leaf.dtype) for box in (_box(index, shape) for index in indices)}


def _array(like: Any, boxes: Mapping[Box, np.ndarray[Any, Any]]) -> Any:
    if isinstance(like, np.ndarray | np.generic):
        (whole,) = boxes.values()
        return whole if isinstance(like, np.ndarray) else whole[()]
    shape = tuple(like.shape)
    sharding = getattr(like, "sharding", None)
    if sharding is None:
        (whole,) = boxes.values()
        return jax.numpy.asarray(whole)
    return jax.make_array_from_callback(shape, sharding, lambda index: boxes[_box(index, shape)])
