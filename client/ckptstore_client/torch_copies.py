"""How does a list of tensors get copied on the CPU? Large ones by the C library, in pieces so long that it stores past the caches.

Who writes memory through the caches reads it first, and so moves three bytes for two. libc's memcpy stores past them from a length on at
which that pays, some tens of MiB by the size of the last cache; torch's own copy never does. 1 GiB in tensors of 64 MiB took 42 ms so, on
two cores, and 55 ms by torch. Everything else is torch's: `_foreach_copy_` takes the whole list in one call, 0.6 µs a tiny tensor where
`copy_` in a loop takes 0.9; each tensor is still copied by torch's intra-op threads.

Both let go of the interpreter lock. Stateless, any thread.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import attrgetter

import torch

#: No piece is shorter, but the last of each tensor: libc's memcpy stores past the caches from here on, where they are not larger still.
PIECE_BYTES = 32 * 1024 * 1024
#: Memory has no more to give to further ones.
MAX_THREADS = 16

_size_bytes = attrgetter("nbytes")
_memcpy = ctypes.CDLL(None).memcpy
_memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcpy.restype = ctypes.c_void_p


def copy_on_cpu(destinations: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy each source, which is on the CPU, to its destination, of one shape and wherever it is. That no gradient follows them is the
    caller's to see to."""
    if max(map(_size_bytes, sources), default=0) < PIECE_BYTES:  # by far the quickest look at 20,000 of them
        if sources:
            torch._foreach_copy_(list(destinations), list(sources))
        return
    large: list[tuple[torch.Tensor, torch.Tensor]] = []
    others: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []
    for pair in zip(destinations, sources, strict=True):
        if _is_large(*pair):
            large.append(pair)
        else:
            others[0].append(pair[0])
            others[1].append(pair[1])
    if large:
        _copy_pieces(deque(piece for pair in large for piece in _pieces(*pair)))
    if others[0]:
        torch._foreach_copy_(*others)


def _is_large(destination: torch.Tensor, source: torch.Tensor) -> bool:
    """Whether the bytes can be taken as they are, and are enough of them."""
    return (
        source.nbytes >= PIECE_BYTES
        and destination.is_cpu
        and source.dtype is destination.dtype
        and source.is_contiguous()
        and destination.is_contiguous()
        and not (source.is_conj() or source.is_neg() or destination.is_conj() or destination.is_neg())
    )


def _pieces(destination: torch.Tensor, source: torch.Tensor) -> Iterator[tuple[int, int, int]]:
    """Addresses and lengths; as many pieces as leave none below PIECE_BYTES."""
    size_bytes, to, start = source.nbytes, destination.data_ptr(), source.data_ptr()
    count = size_bytes // PIECE_BYTES
    edges = [size_bytes * number // count // 64 * 64 for number in range(count)] + [size_bytes]
    for first, last in pairwise(edges):
        yield to + first, start + first, last - first


def _copy_pieces(pieces: deque[tuple[int, int, int]]) -> None:
    helpers = [threading.Thread(target=_take, args=(pieces,), name="ckptstore-copy") for _ in range(_threads(len(pieces)) - 1)]
    for helper in helpers:
        helper.start()
    _take(pieces)
    for helper in helpers:
        helper.join()


def _threads(pieces: int) -> int:
    return min(torch.get_num_threads(), MAX_THREADS, pieces)


def _take(pieces: deque[tuple[int, int, int]]) -> None:
    while pieces:
        try:
            piece = pieces.popleft()
        except IndexError:  # another one had it
            return
        _memcpy(*piece)
