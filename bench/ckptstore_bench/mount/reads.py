"""How is a file read, and a folder looked at, the way loaders do? Each function does it once, and gives the seconds that it took."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

#: What a loader asks for at once, and what it copies out of a mapping at once.
READ_BYTES, COPY_BYTES = 1 << 20, 8 << 20
FIRST_BYTES = 4096

_target = np.zeros(COPY_BYTES, dtype=np.uint8)


def sequential(file: Path) -> float:
    """All of the file by read(2)."""
    buffer = memoryview(bytearray(READ_BYTES))
    began_s = time.perf_counter()
    with open(file, "rb", buffering=0) as opened:
        while opened.readinto(buffer):
            pass
    return time.perf_counter() - began_s


def mapped(file: Path) -> float:
    """All of the file copied out of a mapping."""
    began_s = time.perf_counter()
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as memory:
        whole = np.frombuffer(memory, dtype=np.uint8)
        for start in range(0, len(whole), COPY_BYTES):
            part = whole[start : start + COPY_BYTES]
            np.copyto(_target[: len(part)], part)
        del whole, part
    return time.perf_counter() - began_s


def first_byte(file: Path) -> float:
    began_s = time.perf_counter()
    with open(file, "rb", buffering=0) as opened:
        opened.read(FIRST_BYTES)
    return time.perf_counter() - began_s


def status_of_all(folder: Path) -> float:
    """`stat` of each file of a folder."""
    places = [f"{folder}/{name}" for name in os.listdir(folder)]  # noqa: PTH208 - a listing's own cost is what is measured elsewhere
    began_s = time.perf_counter()
    for place in places:
        os.stat(place)  # noqa: PTH116 - pathlib costs more than the call
    return time.perf_counter() - began_s


def listing(folder: Path) -> float:
    began_s = time.perf_counter()
    os.listdir(folder)  # noqa: PTH208
    return time.perf_counter() - began_s


def open_and_close(file: Path, times: int = 500) -> float:
    """Seconds of one."""
    began_s = time.perf_counter()
    for _ in range(times):
        os.close(os.open(file, os.O_RDONLY))
    return (time.perf_counter() - began_s) / times


READS: dict[str, Callable[[Path], float]] = {"sequential": sequential, "mmap": mapped}
LOOKS: dict[str, Callable[[Path], float]] = {"stat": status_of_all, "ls": listing}
