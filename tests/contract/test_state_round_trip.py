"""A state goes into a file and comes back bit for bit. No daemon is needed for that."""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as safetensors_load

from ckptstore.errors import InvalidInput
from ckptstore.wire import FileInfo
from ckptstore_client import tensors_numpy, tensors_torch
from ckptstore_client.loading import load_state
from ckptstore_client.reading import VerifiedObject
from ckptstore_client.replicas import OpenFile, Replica
from ckptstore_client.staging import Staging
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests
from tests.contract.state_files import Replicas, assert_identical, loaded, random_tensor, round_trip, staged

# --- tensors -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(tensors_torch.DTYPES))
def test_every_torch_dtype_comes_back_bit_for_bit(name: str) -> None:
    dtype = tensors_torch.DTYPES[name]
    state = {"a": random_tensor(dtype, 5, 3), "large": random_tensor(dtype, 700, 1000), "empty": random_tensor(dtype, 0, 3)}
    assert_identical(round_trip(state), state)


@pytest.mark.parametrize("name", sorted(tensors_numpy.DTYPES))
def test_every_numpy_dtype_comes_back_bit_for_bit(name: str) -> None:
    dtype = tensors_numpy.DTYPES[name]
    raw = np.frombuffer(os.urandom(600 * dtype.itemsize), np.uint8)
    array = (raw % 2 if dtype == np.bool_ else raw).view(dtype).reshape(20, 30)
    state = {
        "a": array.copy(),
        "fortran": np.asfortranarray(array),
        "every other": array[::2, ::3],
        "none": array[:0],
        "0-dim": np.array(1, dtype),
    }
    back = round_trip(state)
    assert {key: value.tobytes() for key, value in back.items()} == {key: value.tobytes() for key, value in state.items()}
    assert all(back[key].dtype == dtype and back[key].shape == state[key].shape for key in state)


def test_odd_layouts_come_back_with_their_values() -> None:
    base = torch.randn(64, 48)
    state = {
        "0-dim": torch.tensor(3.5),
        "empty": torch.empty(0),
        "empty 2": torch.empty(3, 0, 5),
        "transposed": base.t(),
        "every other": base[::2, 1::3],
        "expanded": torch.randn(1, 4).expand(300, 4),
        "expanded 0-dim": torch.tensor(2).expand(3, 3),
        "offset": base[3:5],
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "conjugate": torch.randn(4, dtype=torch.complex64).conj(),
        "negative": torch.randn(4, dtype=torch.complex64).conj().imag,
        "large transposed": torch.randn(700, 900).t(),
    }
    assert_identical(round_trip(state), state)


def test_parameters_come_back_as_tensors() -> None:
    model = torch.nn.Linear(3, 2)
    back = round_trip({"direct": model.weight, "dict": model.state_dict()})
    assert type(back["direct"]) is torch.Tensor
    assert torch.equal(back["direct"], model.weight)
    assert type(back["dict"]) is OrderedDict


def test_tied_tensors_are_stored_once_and_tied_again() -> None:
    weight, array = torch.randn(1000), np.arange(10)
    state = {"a": weight, "b": [weight, weight.view(1000)], "view": weight[:500], "n": array, "m": (array,)}
    data = staged(state)
    back = loaded(data)
    assert back["a"] is back["b"][0] is back["b"][1]
    assert back["view"] is not back["a"]
    assert back["n"] is back["m"][0]
    assert len(safetensors_load(data)) == 3
    assert_identical(back, state)


def test_empty_tensors_are_not_tied_by_their_missing_memory() -> None:
    back = round_trip([torch.empty(0), torch.empty(0), np.empty(0), np.empty(0)])
    assert back[0] is not back[1]
    assert back[2] is not back[3]


def test_twenty_thousand_tiny_tensors() -> None:
    state = {"model": {f"layers.{index}.weight": torch.full((3,), index, dtype=torch.int32) for index in range(20_000)}}
    staging = Staging()
    first = staged(state, staging)
    state["model"]["layers.7.weight"].fill_(-1)
    second = staged(state, staging)
    assert_identical(loaded(second), state)
    assert len(first) == len(second)
    assert first != second


def test_small_tensors_of_every_kind_among_each_other() -> None:
    """Those of one dtype and row shape are copied in one call, wherever they stand in the state."""
    makers = [
        lambda i: torch.full((i % 5, 4), float(i)),
        lambda i: torch.arange(i, i + 12, dtype=torch.bfloat16).view(4, 3).t(),
        lambda i: torch.full((3,), i, dtype=torch.int64),
        lambda i: torch.tensor(i, dtype=torch.int16),
        lambda i: torch.full((7,), i % 2 == 0),
        lambda i: torch.randn(6, 4).to(torch.float8_e4m3fn),
        lambda i: torch.randn(2, 4, requires_grad=True),
        lambda i: torch.complex(torch.randn(4), torch.randn(4)).conj(),
        lambda i: torch.randn(32, 1024),  # larger than what counts as small
    ]
    state = {f"{index}": makers[index % len(makers)](index) for index in range(30 * len(makers))}
    staging = Staging()
    assert_identical(loaded(staged(state, staging)), {name: value.detach() for name, value in state.items()})
    for value in state.values():
        if value.is_floating_point() and value.element_size() > 1:
            value.data.mul_(-2)
    assert_identical(loaded(staged(state, staging)), {name: value.detach() for name, value in state.items()})


@pytest.mark.soak
def test_a_tensor_of_two_gibibytes() -> None:
    """Staged into shared memory and read from there, as a daemon's segment is; three copies of it in all."""
    state = {"big": torch.arange((1 << 28) + 1, dtype=torch.int64), "small": torch.ones(3)}
    staging = Staging()
    plan = staging.plan(state)
    fd = os.memfd_create("segment")
    os.truncate(fd, plan.size_bytes)
    with mmap.mmap(fd, plan.size_bytes) as segment:
        staging.copy(plan, memoryview(segment), None)
        digests = BlockDigests.of(memoryview(segment))

    class InSegment(Replicas):
        def open(self, object_id: str, tier: str) -> Replica:
            return OpenFile(os.dup(fd), tier, size_bytes=plan.size_bytes)

    file = FileInfo(object_id="0" * 32, name="rank-0", rank=0, size_bytes=plan.size_bytes, digest=digests.root, blocks=digests.blocks)
    with VerifiedObject(file, InSegment({"memory": b""}), operation="load", path="/a") as source:
        assert torch.equal(load_state(source, None, None)["big"], state["big"])
    os.close(fd)


def test_a_large_tensor_crosses_many_blocks() -> None:
    state = {
        "odd": random_tensor(torch.uint8, 7),
        "big": random_tensor(torch.uint8, 3 * BLOCK_BYTES + 12_345),
        "b": random_tensor(torch.float32, 99_999),
    }
    assert_identical(round_trip(state), state)


def test_safetensors_opens_the_file_and_finds_the_tensors_by_their_places() -> None:
    state = {
        "model": {"w": torch.randn(3), "a/b": torch.ones(2)},
        "list": [torch.zeros(1)],
        3: torch.ones(1),
        "__metadata__": torch.ones(4),
    }
    found = safetensors_load(staged(state))
    assert set(found) == {"model/w", "model/a%2Fb", "list/0", "3", "%5F_metadata__"}
    assert torch.equal(found["model/w"], state["model"]["w"])


def test_tensors_start_aligned_to_their_dtype() -> None:
    state = {
        "a": random_tensor(torch.uint8, 3),
        "b": random_tensor(torch.float64, 5),
        "c": random_tensor(torch.int16, 1),
        "d": torch.randn(64),
    }
    plan = Staging().plan(state).plan
    starts = {entry.key: entry.start for entry in plan.entries["$torch"]}
    assert starts["d"] % 64 == 0
    assert starts["b"] % 8 == 0
    assert starts["c"] % 2 == 0


# --- the rest of the state ---------------------------------------------------------------------------------------------------------

PLAIN = {
    "none": None,
    "true": True,
    "int": -5,
    "large int": 1 << 5000,
    "negative large int": -(1 << 70),
    "safe int": (1 << 53) - 1,
    "first unsafe int": 1 << 53,
    "float": 0.1,
    "tiny": 5e-324,
    "-0.0": -0.0,
    "inf": math.inf,
    "-inf": -math.inf,
    "nan": struct.unpack("d", struct.pack("Q", 0x7FF8_0000_0000_1234))[0],
    "text": "é\u2028\0\U0001f600",
    "bytes": b"\x00\xff",
    "complex": complex(-0.0, math.inf),
    "list": [1, [2, []], {}],
    "tuple": (1, (), (2,)),
    "ordered": OrderedDict([("b", 1), ("a", 2)]),
    "size": torch.Size([2, 3]),
    "dtype": torch.bfloat16,
    "device": torch.device("cuda", 1),
    "f32": np.float32(0.1),
    "bool_": np.bool_(True),
    "c128": np.complex128(1 + 2j),
    "i64": np.int64(-3),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_values_come_back_as_they_were(name: str) -> None:
    assert_identical(round_trip({"here": PLAIN[name]}), {"here": PLAIN[name]})
    assert_identical(round_trip(PLAIN[name]), PLAIN[name])


def test_odd_keys_stay_apart() -> None:
    ones = torch.ones(1)
    state = {
        "1": ones * 1,
        1: ones * 2,
        "a/b": ones * 3,
        "a": {"b": ones * 4, "": ones * 5},
        "%2F": ones * 6,
        "": ones * 7,
        None: ones * 8,
        "None": ones * 9,
        2.5: ones * 10,
        "$torch": ones * 11,
        "é\U0001f600": ones * 12,
        "%31": ones * 13,
        "True": ones * 14,
        "a%2Fb": ones * 15,
        -1: ones * 16,
        math.inf: ones * 17,
    }
    assert_identical(round_trip(state), state)
    assert_identical(round_trip({True: ones, "x": {False: 2}}), {True: ones, "x": {False: 2}})


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5) | st.complex_numbers()
_tensors = st.integers(0, 3).map(lambda n: torch.arange(n)) | st.integers(0, 3).map(lambda n: np.ones((n, 2), np.float16))
_keys = st.text(max_size=4) | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False)
_states = st.recursive(
    _scalars | _tensors,
    lambda children: (
        st.lists(children, max_size=4) | st.lists(children, max_size=4).map(tuple) | st.dictionaries(_keys, children, max_size=4)
        | st.dictionaries(st.text("a1%/$", max_size=3), children, max_size=4).map(OrderedDict)
    ),
    max_leaves=20,
)  # fmt: skip


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(_states)
def test_any_nesting_comes_back(state: Any) -> None:
    assert_identical(round_trip(state), state)


# --- plans -------------------------------------------------------------------------------------------------------------------------


def test_the_same_shape_uses_the_same_plan_and_views() -> None:
    staging, segment = Staging(), memoryview(bytearray(1 << 20))
    plans = []
    for step in range(3):
        plan = staging.plan({"w": torch.full((10,), step), "step": step})
        staging.copy(plan, segment, "segment")
        plans.append(plan.plan)
        assert loaded(bytes(segment[: plan.size_bytes]))["w"][0] == step
    assert plans[0] is plans[1] is plans[2]


def test_a_change_of_shape_dtype_tie_or_name_makes_a_new_plan() -> None:
    staging, w = Staging(), torch.ones(4)
    states: list[Any] = [{"w": w}, {"w": w.double()}, {"w": w[:3]}, {"v": w}, {"w": w, "v": w}, {"w": w, "v": w.clone()}, {"w": np.ones(4)}]
    for state in [*states, *reversed(states)]:
        assert_identical(loaded(staged(state, staging)), state)


def test_inference_mode_and_a_default_device_change_nothing() -> None:
    staging, segment, state = Staging(), memoryview(bytearray(1 << 20)), {"w": torch.randn(10), "e": torch.empty(0)}
    for context in (torch.inference_mode(), torch.device("meta"), torch.no_grad(), torch.enable_grad(), torch.inference_mode(False)):
        with context:
            plan = staging.plan(state)
            staging.copy(plan, segment, "segment")
            assert_identical(loaded(bytes(segment[: plan.size_bytes])), state)


def test_into_an_inference_tensor_needs_inference_mode() -> None:
    data = staged({"w": torch.ones(3)})
    with torch.inference_mode():
        into = {"w": torch.zeros(3)}
        assert torch.equal(loaded(data, into=into)["w"], torch.ones(3))
    with pytest.raises(InvalidInput, match="inference"):
        loaded(data, into=into)
