"""Large tensors are copied by libc in pieces, all others by torch: every bit, whatever the tensors are like."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from ckptstore_client import piece_copies
from ckptstore_client.tensors_torch import DTYPES
from ckptstore_client.torch_copies import copy_on_cpu

PIECE_BYTES = 4096
SIZES_BYTES = [0, 16, PIECE_BYTES - 16, PIECE_BYTES, PIECE_BYTES + 16, 2 * PIECE_BYTES - 16, 7 * PIECE_BYTES + 48, 64 * PIECE_BYTES]


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piece_copies, "PIECE_BYTES", PIECE_BYTES)


@pytest.fixture(params=[1, 4])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    yield request.param


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.resolve_conj().resolve_neg().contiguous().view(torch.uint8).numpy().tobytes()


def noise(size_bytes: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size_bytes)
    return torch.randint(0, 256 if dtype is not torch.bool else 2, (size_bytes,), dtype=torch.uint8, generator=generator).view(dtype)


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_size_and_dtype_arrives_bit_for_bit(name: str, threads: int) -> None:
    sources = [noise(size_bytes, DTYPES[name]) for size_bytes in SIZES_BYTES]
    destinations = [torch.zeros(source.nbytes, dtype=torch.uint8).view(source.dtype) for source in sources]
    if name == "F4":  # torch cannot copy it; who saves one says that it is bytes
        sources, destinations = [s.view(torch.uint8) for s in sources], [d.view(torch.uint8) for d in destinations]
    copy_on_cpu(destinations, sources)
    assert [bits(destination) for destination in destinations] == [bits(source) for source in sources]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t(),
        lambda x: x[::2],
        lambda x: x[:, 1:],
        lambda x: x[:1].expand(64, -1),
        lambda x: x.conj(),
        lambda x: x.conj().imag,
        lambda x: x.imag,
        lambda x: x[3:],
    ],
)
def test_views_arrive_as_what_they_show(view: Callable[[torch.Tensor], torch.Tensor], threads: int) -> None:
    source = view(torch.randn(64, 512, dtype=torch.complex64))
    destination = torch.empty(source.shape, dtype=source.dtype)
    copy_on_cpu([destination], [source])
    assert bits(destination) == bits(source)


def test_destinations_that_are_views_are_filled_where_they_lie() -> None:
    whole, source = torch.zeros(64, 1024), torch.randn(64, 512)
    copy_on_cpu([whole[:, ::2]], [source])
    assert torch.equal(whole[:, ::2], source)
    assert not whole[:, 1::2].any()


def test_another_dtype_is_converted_as_torch_does_it() -> None:
    destination, source = torch.empty(4096, dtype=torch.float64), torch.randn(4096)
    copy_on_cpu([destination], [source])
    assert torch.equal(destination, source.double())


def test_no_thread_outlives_the_copy(threads: int) -> None:
    before = threading.active_count()
    copy_on_cpu([torch.empty(1 << 20, dtype=torch.uint8)], [noise(1 << 20, torch.uint8)])
    assert threading.active_count() == before
