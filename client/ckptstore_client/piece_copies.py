"""How does much memory get copied? In pieces, by the C library, on a few threads.

Who writes memory through the caches reads it first, and so moves three bytes for two. libc's memcpy stores past them from a length on at
which that pays, some tens of MiB by the size of the last cache; torch's and numpy's own copies never do. 1 GiB in tensors of 64 MiB took
42 ms so, on two cores, and 55 ms by torch.

Lets go of the interpreter lock. Stateless, any thread.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import pairwise

#: No piece is shorter, but the last of each: libc's memcpy stores past the caches from here on, where they are not larger still.
PIECE_BYTES = 32 * 1024 * 1024
#: Memory has no more to give to further ones.
MAX_THREADS = 16

#: Address of the destination, address of the source, bytes.
Stretch = tuple[int, int, int]

_memcpy = ctypes.CDLL(None).memcpy
_memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcpy.restype = ctypes.c_void_p


def copy_stretches(stretches: Iterable[Stretch], threads: int) -> None:
    """Copy all of them, which no other thread may change, on at most so many threads, this one among them."""
    pieces = deque(piece for stretch in stretches for piece in pieces_of(stretch))
    helpers = [
        threading.Thread(target=_take, args=(pieces,), name="ckptstore-copy") for _ in range(min(threads, MAX_THREADS, len(pieces)) - 1)
    ]
    for helper in helpers:
        helper.start()
    _take(pieces)
    for helper in helpers:
        helper.join()


def pieces_of(stretch: Stretch) -> Iterator[Stretch]:
    """As many pieces as leave none below PIECE_BYTES; what is shorter is one."""
    to, start, size_bytes = stretch
    count = max(1, size_bytes // PIECE_BYTES)
    edges = [size_bytes * number // count // 64 * 64 for number in range(count)] + [size_bytes]
    for first, last in pairwise(edges):
        yield to + first, start + first, last - first


def _take(pieces: deque[Stretch]) -> None:
    while pieces:
        try:
            piece = pieces.popleft()
        except IndexError:  # another one had it
            return
        _memcpy(*piece)
