"""Large arrays are copied by libc in pieces, all others by numpy: every bit, whatever the arrays are like."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ckptstore_client import piece_copies, tensors_numpy
from ckptstore_client.piece_copies import copy_stretches, pieces_of
from ckptstore_client.tensors_numpy import DTYPES, NumpyArrays

PIECE_BYTES, THREADED_BYTES = 4096, 1024
SIZES = [0, 1, 127, 128, 129, 511, 512, 513, 1023, 7 * 512 + 3, 64 * 512]

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True, params=[1, 4])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piece_copies, "PIECE_BYTES", PIECE_BYTES)
    monkeypatch.setattr(tensors_numpy, "THREADED_BYTES", THREADED_BYTES)
    monkeypatch.setattr(tensors_numpy, "THREADS", request.param)


def noise(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    values = np.random.default_rng(1).integers(0, 2 if dtype == np.bool_ else 256, int(np.prod(shape)) * dtype.itemsize, dtype=np.uint8)
    return values.view(dtype).reshape(shape)


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_size_and_dtype_arrives_bit_for_bit(name: str) -> None:
    sources = [noise((size,), DTYPES[name]) for size in SIZES]
    destinations = [np.zeros_like(source) for source in sources]
    NumpyArrays().copy(destinations, sources)
    assert [found.tobytes() for found in destinations] == [source.tobytes() for source in sources]


@pytest.mark.parametrize(
    "view", [lambda x: x, lambda x: x.T, lambda x: x[::2], lambda x: x[::-1], lambda x: x[:, 1:], lambda x: x[3:], lambda x: x[:1]]
)
def test_views_arrive_as_what_they_show_and_fill_what_they_are(view: Callable[[Array], Array]) -> None:
    source, whole = noise((64, 512), DTYPES["F32"]), np.zeros((64, 512), np.float32)
    plain = np.zeros_like(view(source), order="C")
    NumpyArrays().copy([plain], [view(source)])
    assert plain.tobytes() == np.ascontiguousarray(view(source)).tobytes()
    NumpyArrays().copy([view(whole)], [plain])
    assert view(whole).tobytes() == plain.tobytes()
    view(whole)[...] = 0
    assert not whole.any(), "something beside the view was written"


def test_what_cannot_be_written_is_left_as_it_is() -> None:
    source, destination = noise((4096,), DTYPES["U8"]), np.zeros(4096, np.uint8)
    destination.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        NumpyArrays().copy([destination], [source])
    with pytest.raises(TypeError, match="Cannot cast"):
        NumpyArrays().copy([np.zeros(4096, np.int8)], [source])
    assert not destination.any()


def test_pieces_cover_a_stretch_once_and_none_is_short() -> None:
    for size_bytes in (0, 1, PIECE_BYTES - 1, *range(PIECE_BYTES, 9 * PIECE_BYTES, 1000)):
        found = list(pieces_of((1 << 20, 1 << 30, size_bytes)))
        places = [sum(length for _, _, length in found[:n]) for n in range(len(found))]
        assert [(to - (1 << 20), start - (1 << 30)) for to, start, _ in found] == [(place, place) for place in places]
        assert sum(length for _, _, length in found) == size_bytes
        assert len(found) == 1 or min(length for _, _, length in found) >= PIECE_BYTES - 64


def test_no_thread_outlives_the_copy_and_nothing_is_no_copy() -> None:
    before = threading.active_count()
    copy_stretches([], 4)
    NumpyArrays().copy([np.empty(1 << 20, np.uint8)], [noise((1 << 20,), DTYPES["U8"])])
    assert threading.active_count() == before
