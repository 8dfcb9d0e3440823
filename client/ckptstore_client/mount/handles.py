"""Which files and folders are open? For each node its copy or its backing id, one for all who have it open; and how often it is open.

The kernel wants one backing id for all passthrough opens of an inode, so what is open belongs to the node, and a file's handle is its
node's id. When the last one closes, copy and backing id stay for a moment: an open that follows at once costs no question to the source.
They are given up then, or as soon as the kernel forgets the node, so that an evicted file's space is not held.

Descriptors of copies are also kept by the holder (`Keeper`), backing ids by the kernel, counts in the journal: a successor takes all up.
Counting needs the tables' lock; opening one node is under that node's own.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from ckptstore_client.mount.device import Device
from ckptstore_client.mount.journal import Journal, Line
from ckptstore_client.mount.nodes import REMEMBERED_ANSWERS, Node
from ckptstore_client.mount.protocol import UNIQUE_RESEND
from ckptstore_client.mount.source import Copy

#: How long, and how many, files stay ready after their last close.
LINGER_S = 2.0
LINGERING_FILES = 64


class Keeper(Protocol):
    """Keeps descriptors beyond this process's life."""

    def keep(self, name: str, fd: int) -> None: ...

    def let_go(self, name: str) -> None: ...


class OpenFile:
    """One node that is open, or was a moment ago."""

    __slots__ = ("arrived", "backing_id", "copy", "node", "opening", "opens", "retired")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.opens = 0
        self.backing_id: int | None = None
        self.copy: Copy | None = None
        #: blocks of the copy that are known to be there
        self.arrived: set[int] = set()
        #: copies that were replaced, and may still be read from by a request under way
        self.retired: list[Copy] = []
        self.opening = threading.Lock()


class OpenFiles:
    def __init__(self, journal: Journal, device: Device, keeper: Keeper) -> None:
        self._journal = journal
        self._device = device
        self._keeper = keeper
        self._by_node: dict[int, OpenFile] = {}
        self._lingering: OrderedDict[int, float] = OrderedDict()
        #: requests that were counted: one that comes again is not counted again
        self._counted: OrderedDict[int, None] = OrderedDict()

    # --- for a successor ----------------------------------------------------------------------------------------------------------

    def recall(self, line: Line, node: Node | None) -> None:
        """A line of the journal, and the node that it names, if that is still known."""
        file: OpenFile | None
        if line[0] == "open":
            _, unique, _, backing_id = line
            if node is not None:
                file = self.of(node)
                file.opens += 1
                file.backing_id = backing_id
            self._remember(unique)
        elif line[0] == "release":
            if (file := self._by_node.get(line[2])) is not None:
                file.opens -= 1
            self._remember(line[1])
        elif line[0] == "opened" and node is not None:
            file = self.of(node)
            file.opens, file.backing_id = line[2], line[3]
        elif line[0] == "closed" and (file := self._by_node.get(line[1])) is not None:
            file.backing_id = None
        elif line[0] == "counted":
            self._remember(line[1])

    def take_up(self, name: str, fd: int) -> bool:
        """A descriptor that was kept. False: nothing here needs it."""
        id, kind, copy_id = name.split(" ")
        file = self._by_node.get(int(id))
        if file is None or file.opens <= 0 or file.copy is not None:
            return False
        file.copy = Copy(file.node.path, file.node.version, file.node.size_bytes, fd, kind == "whole", copy_id)
        return True

    def settle(self) -> None:
        """After the journal was read: what is not open any more is given up."""
        for id, file in list(self._by_node.items()):
            if file.opens <= 0:
                self._close(id)

    def lines(self) -> Iterator[Line]:
        for id, file in self._by_node.items():
            yield ("opened", id, file.opens, file.backing_id)
        for unique in self._counted:
            yield ("counted", unique)

    # --- opening and closing ------------------------------------------------------------------------------------------------------

    def of(self, node: Node) -> OpenFile:
        """What is open of the node; if nothing is, something to open it with."""
        file = self._by_node.get(node.id)
        if file is None:
            file = self._by_node[node.id] = OpenFile(node)
            self._lingering[node.id] = time.monotonic() + LINGER_S
        return file

    def get(self, id: int) -> OpenFile | None:
        return self._by_node.get(id)

    def adopt(self, file: OpenFile, copy: Copy) -> None:
        """The file is read from this copy from now on."""
        if file.copy is not None:
            file.retired.append(file.copy)
        file.copy = copy
        file.arrived.clear()
        if copy.fd >= 0:
            self._keeper.keep(f"{file.node.id} {'whole' if copy.whole else 'partial'} {copy.copy_id}", copy.fd)

    def count(self, unique: int, file: OpenFile) -> None:
        self._lingering.pop(file.node.id, None)
        if unique & UNIQUE_RESEND and unique & ~UNIQUE_RESEND in self._counted:
            return
        file.opens += 1
        self._remember(unique & ~UNIQUE_RESEND)
        self._journal.append(("open", unique & ~UNIQUE_RESEND, file.node.id, file.backing_id))

    def release(self, unique: int, id: int) -> None:
        file = self._by_node.get(id)
        if file is None or (unique & UNIQUE_RESEND and unique & ~UNIQUE_RESEND in self._counted):
            return
        file.opens -= 1
        self._remember(unique & ~UNIQUE_RESEND)
        self._journal.append(("release", unique & ~UNIQUE_RESEND, id))
        if file.opens <= 0:
            self._lingering[id] = time.monotonic() + LINGER_S
            if len(self._lingering) > LINGERING_FILES:
                self.reap(most=LINGERING_FILES)

    def reap(self, *, most: int = 0) -> None:
        """Give up what was closed some time ago; with `most`, also what is newer, until so many are left."""
        now_s = time.monotonic()
        for id, until_s in list(self._lingering.items()):
            if until_s > now_s and not (most and len(self._lingering) > most):
                break
            file = self._by_node.get(id)
            if file is not None and file.opening.locked():
                continue
            del self._lingering[id]
            if file is not None and file.opens <= 0:
                self._close(id)

    def forgotten(self, id: int) -> None:
        """The kernel does not know the node any more, so nothing of it is open, whatever was counted."""
        if id in self._by_node:
            self._close(id)

    def __iter__(self) -> Iterator[OpenFile]:
        return iter(list(self._by_node.values()))

    def _close(self, id: int) -> None:
        file = self._by_node.pop(id)
        self._lingering.pop(id, None)
        if file.backing_id is not None:
            self._device.close_backing(file.backing_id)
            self._journal.append(("closed", id))
        if file.copy is not None and file.copy.fd >= 0:
            self._keeper.let_go(str(id))
        for copy in (*file.retired, *((file.copy,) if file.copy else ())):
            copy.close()

    def _remember(self, unique: int) -> None:
        self._counted[unique] = None
        if len(self._counted) > REMEMBERED_ANSWERS:
            self._counted.popitem(last=False)
