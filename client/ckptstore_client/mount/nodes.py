"""Which file does a node id of the kernel's stand for? One version of one path, cold or hot; and how often the kernel knows it.

The kernel caches by node id, and an id never changes its meaning: a new version is a new node, so what is open stays what it was, and
nothing cached is ever shown for something else. A file has two nodes: *cold*, whose reads come to us and stay in the page cache, and
*hot*, which the kernel reads from the node's copy by itself. It refuses (EIO) an inode that is open both ways at once, so a node is
never both; which one a lookup gets depends on whether the copy is whole at that moment. Both show the same inode number.

The kernel counts each lookup that it was answered, and forgets by number: a node goes when its count is 0. Every change is in the journal
before it is answered. All methods need the tables' lock, except reading a node's fields, which do not change.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator

from ckptstore.paths import parent_and_name
from ckptstore.tree_messages import TreeInfo
from ckptstore_client.mount.journal import Journal, Line
from ckptstore_client.mount.protocol import ROOT_ID, UNIQUE_RESEND, Attributes

Key = tuple[str, str, bool]
#: How many answered requests are remembered, in case the kernel asks them again: more than it has under way at once.
REMEMBERED_ANSWERS = 4096


class Node:
    """`lookups` aside, and when a folder was last changed, nothing here changes."""

    __slots__ = ("hot", "id", "ino", "kind", "lookups", "modified_ns", "path", "size_bytes", "target", "version")

    def __init__(
        self,
        id: int,
        path: str,
        kind: str,
        version: str,
        size_bytes: int,
        modified_ns: int,
        target: str | None,
        hot: bool,
        lookups: int = 0,
    ) -> None:
        self.id, self.path, self.kind, self.version = id, path, kind, version
        self.size_bytes, self.modified_ns, self.target, self.hot, self.lookups = size_bytes, modified_ns, target, hot, lookups
        self.ino = inode_number(path, version)

    @property
    def key(self) -> Key:
        return self.path, self.version, self.hot

    def line(self) -> Line:
        fields = (self.id, self.path, self.kind, self.version, self.size_bytes, self.modified_ns, self.target, self.hot, self.lookups)
        return ("node", *fields)

    @property
    def link_text(self) -> str:
        """Where a link points: relative, so that it holds wherever the mount is seen from."""
        return os.path.relpath(self.target or "", parent_and_name(self.path)[0])

    def attributes(self, uid: int, gid: int) -> Attributes:
        size_bytes = len(self.link_text.encode()) if self.target is not None else self.size_bytes
        return Attributes(self.ino, size_bytes, self.modified_ns, MODES[self.kind], 2 if self.kind == "folder" else 1, uid, gid)


MODES = {"file": stat.S_IFREG | 0o444, "folder": stat.S_IFDIR | 0o555, "link": stat.S_IFLNK | 0o777}


def inode_number(path: str, version: str) -> int:
    """The same at every mount; a new version has a new one, as a file that took another's place has."""
    digest = hashlib.blake2b(f"{path}\0{version}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1 or 1


class Nodes:
    def __init__(self, journal: Journal, root_path: str) -> None:
        self._journal = journal
        self.root_path = root_path
        self._by_id: dict[int, Node] = {ROOT_ID: Node(ROOT_ID, root_path, "folder", "", 0, 0, None, False, 1)}
        self._by_key: dict[Key, Node] = {self._by_id[ROOT_ID].key: self._by_id[ROOT_ID]}
        self._next = ROOT_ID + 1
        #: request → the nodes that it counted: a request that comes again counts them once
        self._counted: dict[int, set[int]] = {}

    def recall(self, line: Line) -> None:
        """A line of the journal, at the start of a successor."""
        if line[0] == "node":
            node = Node(*line[1:])
            self._by_id[node.id] = self._by_key[node.key] = node
            self._next = max(self._next, node.id + 1)
        elif line[0] == "look":
            _, unique, id = line
            if id in self._by_id:
                self._by_id[id].lookups += 1
            self._remember(unique, id)
        elif line[0] == "forget":
            self._drop(line[1], line[2])
        elif line[0] == "looked":
            self._remember(line[1], line[2])
        elif line[0] == "next":
            self._next = max(self._next, line[1])

    def lines(self) -> Iterator[Line]:
        """All that is true now, for a journal that is written anew."""
        yield ("next", self._next)
        yield from (node.line() for node in self._by_id.values() if node.id != ROOT_ID)
        yield from (("looked", unique, id) for unique, ids in self._counted.items() for id in ids)

    def get(self, id: int) -> Node | None:
        return self._by_id.get(id)

    def of(self, path: str, version: str, *, hot: bool) -> Node | None:
        return self._by_key.get((path, version, hot))

    def children(self, folder: str) -> set[str]:
        """The paths right below the folder that the kernel has heard of."""
        prefix = folder.rstrip("/") + "/"
        return {prefix + path[len(prefix) :].partition("/")[0] for path, _, _ in self._by_key if path.startswith(prefix)}

    def look(self, unique: int, found: list[tuple[TreeInfo, bool]]) -> list[Node]:
        """The nodes of these (what is there, whether hot), each looked up once more by the kernel's request `unique`."""
        lines: list[Line] = []
        before = self._counted.get(unique & ~UNIQUE_RESEND, set()) if unique & UNIQUE_RESEND else set()
        nodes = []
        for info, hot in found:
            node = self._find_or_make(info, hot, lines)
            if node.id not in before:
                node.lookups += 1
                lines.append(("look", unique & ~UNIQUE_RESEND, node.id))
                self._remember(unique & ~UNIQUE_RESEND, node.id)
            nodes.append(node)
        if lines:
            self._journal.append(*lines)
        return nodes

    def forget(self, id: int, lookups: int) -> bool:
        """Whether the kernel does not know the node any more."""
        is_gone = self._drop(id, lookups)
        self._journal.append(("forget", id, lookups))
        return is_gone

    def __len__(self) -> int:
        return len(self._by_id)

    def _find_or_make(self, info: TreeInfo, hot: bool, lines: list[Line]) -> Node:
        version = info.target or "" if info.kind == "link" else info.version if info.kind == "file" else ""
        node = self._by_key.get((info.path, version, hot))
        if node is None or node.kind != info.kind or (info.kind == "file" and node.size_bytes != info.size_bytes):
            node = Node(self._next, info.path, info.kind, version, info.size_bytes, int(info.modified_s * 1e9), info.target, hot)
            self._next += 1
            self._by_id[node.id] = self._by_key[node.key] = node
            lines.append(node.line())
        elif node.kind == "folder":
            node.modified_ns = int(info.modified_s * 1e9)
        return node

    def _remember(self, unique: int, id: int) -> None:
        self._counted.setdefault(unique, set()).add(id)
        if len(self._counted) > REMEMBERED_ANSWERS:
            del self._counted[next(iter(self._counted))]

    def _drop(self, id: int, lookups: int) -> bool:
        node = self._by_id.get(id)
        if node is None or id == ROOT_ID:
            return False
        node.lookups -= lookups
        if node.lookups > 0:
            return False
        del self._by_id[id]
        if self._by_key.get(node.key) is node:
            del self._by_key[node.key]
        return True
