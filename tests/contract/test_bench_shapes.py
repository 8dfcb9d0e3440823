"""What the bench saves: sizes add up exactly, a model's state has its published size, and contradictions are refused."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from ckptstore.errors import ConfigInvalid, InvalidInput
from ckptstore_bench.shape import equal_tensors, like_model, read_scale
from ckptstore_bench.shape_options import chosen_shape
from ckptstore_bench.shared_state import SharedState, check_memory, empty_like, flat, open_state, same_bits

GIB = 1 << 30


@pytest.mark.parametrize(("size_bytes", "count"), [(1 << 20, 64), (1 << 20, 7), (4, 1), (1_000_000, 3)])
def test_equal_tensors_have_all_of_the_bytes(size_bytes: int, count: int) -> None:
    shape = equal_tensors(size_bytes, count)
    assert len(shape.tensors) == count
    assert shape.size_bytes == size_bytes // 4 * 4


def test_more_tensors_than_elements_are_refused() -> None:
    with pytest.raises(InvalidInput, match="tensors"):
        equal_tensors(16, 5)


def test_llama3_8b_has_the_size_that_mlperf_gives_and_keeps_its_tensors_when_scaled() -> None:
    whole, scaled = like_model("llama3-8b", Fraction(1)), like_model("llama3-8b", Fraction(1, 64))
    assert abs(whole.size_bytes / GIB - 104.7) < 0.2
    assert len(whole.tensors) == len(scaled.tensors)
    assert abs(scaled.size_bytes * 64 / whole.size_bytes - 1) < 0.01


@pytest.mark.parametrize("scale", ["0", "2", "-1/2", "x", "1/0"])
def test_a_scale_that_is_none_is_refused(scale: str) -> None:
    with pytest.raises(InvalidInput, match="scale"):
        like_model("llama3-8b", read_scale(scale))


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="llama3-70b"):
        like_model("llama9", Fraction(1))


def test_size_and_model_at_once_are_refused() -> None:
    with pytest.raises(InvalidInput, match="--like"):
        chosen_shape("1GiB", 64, "llama3-8b", "1/64")
    with pytest.raises(InvalidInput, match="--like"):
        chosen_shape(None, 64, None, "1/64")


def test_every_process_sees_the_same_state_and_a_change_touches_only_the_end_of_it() -> None:
    shape = like_model("llama3-8b", Fraction(1, 100_000))
    with SharedState(shape) as shared:
        seen = flat(open_state(shared.path, shape))
        again = flat(open_state(shared.path, shape))
        assert same_bits(seen, again)
        before = {name: tensor.clone() for name, tensor in seen.items()}
        changed_bytes = shared.change(0.1, seed=7)
        differing = {name for name in seen if not torch.equal(seen[name], before[name])}
        assert changed_bytes >= 0.1 * shape.size_bytes
        assert differing, "nothing changed"
        assert sum(before[name].nbytes for name in differing) <= changed_bytes
        assert differing <= set(list(seen)[-len(differing) :])
        assert not same_bits(before, seen)
        assert not same_bits(flat(empty_like(shape)), seen)
        del seen, again


def test_more_memory_than_there_is_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="memory"):
        check_memory(1 << 50)
