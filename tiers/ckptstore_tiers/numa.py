"""On which memory does a segment lie, on a machine that has several?

A processor copies into the memory of its own node up to twice as fast as into that of another. So a segment's pages are made on the
node of the process that it is lent to, if that one runs on one node alone (a launcher or a container has bound it there, as those of
GPU jobs do); for one that runs anywhere they are spread over all nodes. The policy is the memfd's own, and holds whichever process
touches a page first; it is a preference: a node that is full gives way.

On a machine with one node nothing is done. Nor where the kernel refuses (a sandbox without mbind): the pages then lie where they are
first touched. Source: mbind(2), Documentation/ABI/stable/sysfs-devices-node. Any thread.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from ckptstore_tiers.sources import address_of

_NODES = Path("/sys/devices/system/node")
#: libc has no wrapper for it.
_MBIND = {"x86_64": 237, "aarch64": 235}
_MPOL_PREFERRED, _MPOL_INTERLEAVE = 1, 3
_WORD_BITS = 64

#: Node → the processors that are near its memory.
Nodes = Mapping[int, frozenset[int]]


@cache
def machine_nodes() -> Nodes:
    """This machine's."""
    return read_nodes(_NODES)


def read_nodes(folder: Path) -> Nodes:
    """The nodes that have processors; none where the kernel does not tell."""
    nodes: dict[int, frozenset[int]] = {}
    with suppress(OSError, ValueError):
        for place in folder.glob("node[0-9]*"):
            if cpus := _listed((place / "cpulist").read_text("ascii")):
                nodes[int(place.name.removeprefix("node"))] = cpus
    return nodes


def _listed(text: str) -> frozenset[int]:
    """The numbers of a list like "0-3,8"."""
    found: set[int] = set()
    for stretch in filter(None, text.strip().split(",")):
        first, _, last = stretch.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def home_of(pid: int, nodes: Nodes) -> int | None:
    """The node on which alone the process may run; None if there are several, or it is gone."""
    try:
        allowed = os.sched_getaffinity(pid)
    except OSError:
        return None
    homes = [node for node, cpus in nodes.items() if allowed & cpus]
    return homes[0] if len(homes) == 1 else None


def settle(memory: memoryview, pid: int | None, nodes: Nodes | None = None) -> bool:
    """Say where the pages of this shared memory are to be made, before it has any, for this process; whether anything was said."""
    known = machine_nodes() if nodes is None else nodes
    if len(known) < 2:
        return False
    home = None if pid is None else home_of(pid, known)
    return prefer(memory, list(known) if home is None else [home])


def prefer(memory: memoryview, nodes: list[int]) -> bool:
    """Have its pages made on this node, or on these in turn; False if the kernel does not take it."""
    number = _MBIND.get(platform.machine())
    if number is None:
        return False
    words = (ctypes.c_ulong * (max(nodes) // _WORD_BITS + 1))()
    for node in nodes:
        words[node // _WORD_BITS] |= 1 << node % _WORD_BITS
    policy = _MPOL_PREFERRED if len(nodes) == 1 else _MPOL_INTERLEAVE
    most = ctypes.c_ulong(len(words) * _WORD_BITS + 1)  # the kernel looks at one bit less
    where, size_bytes = ctypes.c_ulong(address_of(memory)), ctypes.c_ulong(len(memory))
    arguments = (ctypes.c_long(number), where, size_bytes, ctypes.c_ulong(policy), words, most, ctypes.c_ulong(0))
    said: int = ctypes.CDLL(None, use_errno=True).syscall(*arguments)
    return said == 0
