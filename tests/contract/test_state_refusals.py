"""A state that cannot be stored is refused by its place before a byte is written."""

from __future__ import annotations

import math
from collections import defaultdict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch

from ckptstore.errors import NotStorable
from ckptstore_client.staging import Staging
from tests.contract.state_files import round_trip

Pair = namedtuple("Pair", "a b")


class Foo:
    pass


REFUSED = {
    "a class": Foo(),
    "a namedtuple": Pair(1, 2),
    "a defaultdict": defaultdict(int),
    "a set": {1},
    "a bytearray": bytearray(b"x"),
    "a function": len,
    "a subclass of int": type("Number", (int,), {})(3),
    "a subclass of str": type("Text", (str,), {})("x"),
    "lone surrogates": "\ud800",
    "a sparse tensor": torch.eye(2).to_sparse(),
    "a meta tensor": torch.empty(2, device="meta"),
    "a quantized tensor": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "complex128": torch.ones(2, dtype=torch.complex128),
    "a tensor subclass": torch.ones(2).as_subclass(type("Special", (torch.Tensor,), {})),
    "an object array": np.array([None]),
    "a text array": np.array(["a"]),
    "a big-endian array": np.ones(2, ">f4"),
    "a structured array": np.zeros(2, [("a", "i4")]),
    "a date": np.datetime64("2020-01-01"),
    "a masked array": np.ma.array([1]),
    "a nan key": {math.nan: 1},
    "a tuple key": {(1, 2): 3},
    "a surrogate key": {"\udfff": 1},
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_stored_is_refused_by_its_place(what: str) -> None:
    state = {"model": {"w": torch.ones(2)}, "optim": {"state": {3: {"foo": REFUSED[what]}}}}
    with pytest.raises(NotStorable) as refusal:
        Staging().plan(state)
    assert refusal.value.subject == "optim/state/3/foo"


def test_a_refusal_names_the_class() -> None:
    with pytest.raises(NotStorable, match=r"optim/0: <class '.*Foo'>"):
        Staging().plan({"optim": [Foo()]})


def test_a_cycle_is_refused() -> None:
    state: dict[str, Any] = {"a": {}}
    state["a"]["b"] = [state["a"]]
    with pytest.raises(NotStorable, match="contains itself"):
        Staging().plan(state)


def test_a_container_that_is_met_twice_is_no_cycle() -> None:
    shared = [1]
    assert round_trip({"a": shared, "b": shared}) == {"a": [1], "b": [1]}


def test_bottomless_nesting_is_refused() -> None:
    state: Any = 1
    for _ in range(5000):
        state = [state]
    with pytest.raises(NotStorable, match="deep"):
        Staging().plan(state)
