"""Saves and loads pytrees of sharded jax arrays, and compares: `jax_program.py HOME FOLDER`, run by test_jax_trees with eight devices."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import ckptstore
from ckptstore.errors import InvalidInput, NotStorable
from ckptstore_client import Store
from ckptstore_client.jax import load_tree, save_tree


class Moments(NamedTuple):
    mean: Any
    count: int


def sharding(shape: tuple[int, ...], *spec: str | tuple[str, ...] | None) -> NamedSharding:
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return NamedSharding(Mesh(devices, ("a", "b", "c")[: len(shape)]), PartitionSpec(*spec))


WHOLE = {
    "kernel": np.arange(16 * 24, dtype=np.float32).reshape(16, 24),
    "bias": np.arange(24).astype(jnp.bfloat16),
    "scale": np.float32(2.5).reshape(()),
}


def tree_on(shardings: dict[str, Any], *, step: int) -> dict[str, Any]:
    put = {name: jax.device_put(jnp.asarray(WHOLE[name]), shardings[name]) for name in WHOLE}
    moments = (Moments(put["kernel"], step), None)
    return {"params": {"dense": {"kernel": put["kernel"], "bias": put["bias"]}, "scale": put["scale"]}, "opt": moments, "step": step}


def blank(tree: Any) -> Any:
    """The same shapes and shardings, without values."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if isinstance(x, jax.Array) else x, tree)


def check(loaded: Any, like: Any) -> None:
    assert jax.tree.structure(loaded) == jax.tree.structure(like)
    kernel = loaded["params"]["dense"]["kernel"]
    assert kernel.sharding == like["params"]["dense"]["kernel"].sharding
    for name, value in (("kernel", kernel), ("bias", loaded["params"]["dense"]["bias"]), ("scale", loaded["params"]["scale"])):
        assert value.dtype == WHOLE[name].dtype and np.asarray(value).tobytes() == WHOLE[name].tobytes(), name
    assert loaded["step"] == 7 and loaded["opt"][0].count == 7 and loaded["opt"][1] is None
    assert np.array_equal(np.asarray(loaded["opt"][0].mean), WHOLE["kernel"])


def main(store: Store, folder: str) -> None:
    assert len(jax.devices()) == 8
    layouts = {
        "two-dimensional": {"kernel": sharding((2, 4), "a", "b"), "bias": sharding((2, 4), "b"), "scale": sharding((2, 4))},
        "rows": {"kernel": sharding((8,), "a"), "bias": sharding((8,), "a"), "scale": sharding((8,))},
        "both on one": {"kernel": sharding((2, 4), None, ("b", "a")), "bias": sharding((2, 4), ("a", "b")), "scale": sharding((2, 4))},
        "replicated": dict.fromkeys(WHOLE, sharding((8,))),
        "one device": dict.fromkeys(WHOLE, SingleDeviceSharding(jax.devices()[3])),
    }
    for name, shardings in layouts.items():
        save_tree(store, f"{folder}/{name}", tree_on(shardings, step=7)).wait("nvme", timeout_s=60)
    for saved in layouts:
        for shardings in layouts.values():
            like = tree_on(shardings, step=0)
            check(load_tree(store, f"{folder}/{saved}", like), like)
    like = tree_on(layouts["rows"], step=0)
    check(load_tree(store, f"{folder}/two-dimensional", blank(like)), like)
    leaves_of_numpy(store, f"{folder}/numpy")
    refusals(store, folder, like)
    print("all is well")


def leaves_of_numpy(store: Store, path: str) -> None:
    """Arrays and scalars of numpy beside jax's: as they were where `like` has one of numpy's, jax arrays where it wants one."""
    grid = np.arange(24.0).reshape(4, 6)
    rows = sharding((4,), "a")
    tree = {
        "strided": grid[::2, 1::2], "whole": grid, "no dimension": np.array(3, np.int16), "none": np.empty((0, 3), np.uint8),
        "truth": np.array([True, False]), "scalar": np.float32(0.1), "jax": jax.device_put(jnp.arange(8), rows),
    }  # fmt: skip
    save_tree(store, path, tree).wait("nvme", timeout_s=60)
    found = load_tree(store, path, jax.tree.map(lambda leaf: np.zeros_like(leaf) if isinstance(leaf, np.ndarray) else leaf, tree))
    for name, value in tree.items():
        assert type(found[name]) is type(value) and found[name].dtype == value.dtype, name
        assert np.asarray(found[name]).tobytes() == np.asarray(value).tobytes(), name
    spread = load_tree(store, path, tree | {"whole": jax.ShapeDtypeStruct(grid.shape, grid.dtype, sharding=rows)})["whole"]
    assert isinstance(spread, jax.Array) and spread.sharding == rows and np.array_equal(np.asarray(spread), grid)


def refusals(store: Store, folder: str, like: dict[str, Any]) -> None:
    for change, told in (
        ({"extra": jnp.ones(2)}, "extra: it is here, and not stored"),
        ({"params": {"scale": jnp.ones(3)}}, "params/scale: it is float32 of"),
        ({"params": {"scale": 1.0}}, "params/scale: stored is an array"),
    ):
        try:
            load_tree(store, f"{folder}/rows", change)
        except InvalidInput as error:
            assert told in str(error), error
        else:
            raise AssertionError(f"{told!r} was not told")
    try:
        save_tree(store, f"{folder}/keys", {"key": jax.random.key(0)})
    except NotStorable as error:
        assert "key_data" in str(error)
    else:
        raise AssertionError("a typed key was taken")


if __name__ == "__main__":
    with ckptstore.connect(home=sys.argv[1], start=False) as connected:
        main(connected, sys.argv[2])
