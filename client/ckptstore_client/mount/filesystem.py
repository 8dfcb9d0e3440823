"""What does the mount answer to each request? A read-only tree, every file a fixed version.

An operation is a method that takes a request and returns the body of the reply, or raises: `Refused` with an errno, `MustWait` when the
answer has to be asked for and `may_wait` says that the thread at hand has no time for it (then it is called again on another thread). So
what is known is answered at once, and what is not holds nobody else up.

Opening settles which version and which node a reader gets: is the node not what a look-up would give now (the path has a new version, the
copy has become whole, or is whole no more), the answer is ESTALE. The kernel then looks the path up again and opens what it gets, without
the program noticing; so an open by path is never older than what the source has told. A program that insists (an open through
/proc/self/fd has no path to look up) is given the version that its node stands for.

Names that the tree cannot have are not there; the kernel resolves `..` itself; a link that leads out of what is exported leads nowhere.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from ckptstore.errors import CkptStoreError, InvalidInput, NotFound, StaleVersion, Unauthorized
from ckptstore.paths import check_segment, join
from ckptstore.tree_messages import TreeInfo
from ckptstore_client.mount import protocol
from ckptstore_client.mount.believed import Believed, MustWait
from ckptstore_client.mount.device import Device
from ckptstore_client.mount.extended import extended_attributes
from ckptstore_client.mount.folders import Folders
from ckptstore_client.mount.handles import OpenFile, OpenFiles
from ckptstore_client.mount.nodes import Node, Nodes
from ckptstore_client.mount.protocol import Opcode, OpenFlag, Request
from ckptstore_client.mount.reading import Reading
from ckptstore_client.mount.source import Copy, Source

#: A file's attributes never change; a folder's do.
FILE_VALID_S, FOLDER_VALID_S = 86_400.0, 1.0
#: For how long the kernel may believe that there is no such name right below the root: what comes there by a move or by `attach` is told
#: without its name, and the kernel can be made to forget only names. (Deeper down it forgets them with their folder's.)
UNTOLD_S = 1.0
MAX_NAME_BYTES = 255
#: Who was told ESTALE and has not come back yet: forgotten when there are more than this.
TOLD_STALE = 4096
#: Copies for an open that follows at once: a few, for a moment.
READY_COPIES, READY_S = 16, 1.0

Body = bytes | memoryview


class Refused(Exception):
    """Answered with an errno."""

    def __init__(self, code: int) -> None:
        self.code = code


def errno_of(error: CkptStoreError) -> int:
    """What a program sees of an error of ours."""
    if isinstance(error, NotFound):
        return errno.ENOENT
    if isinstance(error, StaleVersion):
        return errno.ESTALE
    if isinstance(error, Unauthorized):
        return errno.EACCES
    return errno.EIO


class FileSystem:
    """`lock` guards nodes, open files and journal; it is never held while the source is asked."""

    def __init__(
        self, source: Source, believed: Believed, device: Device, nodes: Nodes, files: OpenFiles, lock: threading.Lock, *, passthrough: bool
    ) -> None:
        self.lock = lock
        self.passthrough = passthrough
        self._source = source
        self._believed = believed
        self._device = device
        self._nodes = nodes
        self._files = files
        self._root = nodes.root_path
        self._owner = os.getuid(), os.getgid()
        self._told_stale: OrderedDict[tuple[str, int], None] = OrderedDict()
        #: whole copies that were opened for a cold node, for the open of the hot one that follows
        self._ready: OrderedDict[tuple[str, str], tuple[Copy, float]] = OrderedDict()
        self._folders = Folders(source, believed)
        self._reading = Reading(source, files, lock)
        self.operations: dict[int, Callable[[Request, bool], Body]] = {
            Opcode.LOOKUP: self.lookup,
            Opcode.GETATTR: self.getattr,
            Opcode.READLINK: self.readlink,
            Opcode.OPEN: self.open,
            Opcode.READ: self.read,
            Opcode.RELEASE: self.release,
            Opcode.OPENDIR: self.opendir,
            Opcode.READDIR: self.readdir,
            Opcode.READDIRPLUS: self.readdir,
            Opcode.RELEASEDIR: self.releasedir,
            Opcode.STATFS: self.statfs,
            Opcode.GETXATTR: self.getxattr,
            Opcode.LISTXATTR: self.listxattr,
        }

    # --- names --------------------------------------------------------------------------------------------------------------------

    def lookup(self, request: Request, may_wait: bool) -> Body:
        parent = self._node(request)
        path = join(parent.path, _name(request.name))
        try:
            info = self._believed.info(path, may_wait=may_wait)
        except NotFound:
            valid_s = self._believed.valid_s(None)
            return protocol.no_entry(name_valid_s=min(valid_s, UNTOLD_S) if parent.path == self._root else valid_s)
        with self.lock:
            (node,) = self._nodes.look(request.unique, [(info, self.hot_now(info))])
        return self._entry(node, info)

    def forget(self, id: int, lookups: int) -> None:
        with self.lock:
            if self._nodes.forget(id, lookups):
                self._files.forgotten(id)

    def getattr(self, request: Request, may_wait: bool) -> Body:
        node = self._node(request)
        valid_s = FOLDER_VALID_S if node.kind == "folder" else FILE_VALID_S
        return protocol.attributes_reply(node.attributes(*self._owner), valid_s=valid_s)

    def readlink(self, request: Request, may_wait: bool) -> Body:
        node = self._node(request)
        if node.target is None:
            raise Refused(errno.EINVAL)
        if not f"{node.target}/".startswith(f"{self._root.rstrip('/')}/"):  # it leads out of what is exported
            raise Refused(errno.ENOENT)
        return node.link_text.encode()

    def _entry(self, node: Node, info: TreeInfo) -> bytes:
        attributes_valid_s = FOLDER_VALID_S if node.kind == "folder" else FILE_VALID_S
        return protocol.entry(
            node.id, self._shown(node), name_valid_s=self._believed.valid_s(info), attributes_valid_s=attributes_valid_s
        )

    def _shown(self, node: Node) -> protocol.Attributes:
        return node.attributes(*self._owner)

    def hot_now(self, info: TreeInfo) -> bool:
        return self.passthrough and info.whole and info.kind == "file" and info.size_bytes > 0

    # --- files --------------------------------------------------------------------------------------------------------------------

    def open(self, request: Request, may_wait: bool) -> Body:
        node = self._node(request)
        flags, _ = protocol.OPEN_IN.unpack_from(request.body)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise Refused(errno.EROFS)
        self._check_current(node, request.pid, may_wait)
        while True:
            with self.lock:
                file = self._files.of(node)
            if not file.opening.acquire(blocking=may_wait):
                raise MustWait
            try:
                with self.lock:
                    if self._files.get(node.id) is not file:  # it was given up meanwhile
                        continue
                opened = self._open_hot(file, may_wait) if node.hot else self._open_cold(file, request.pid, may_wait)
                with self.lock:
                    self._files.count(request.unique, file)
                    self._told_stale.pop((node.path, request.pid), None)
                return opened
            except StaleVersion:  # ESTALE: the kernel looks up again, and is answered anew
                self._believed.doubt(node.path)
                raise
            finally:
                file.opening.release()

    def _check_current(self, node: Node, pid: int, may_wait: bool) -> None:
        try:
            info: TreeInfo | None = self._believed.info(node.path, may_wait=may_wait)
        except NotFound:
            info = None
        except CkptStoreError:  # the source is away: whatever is open stays what it is, and can be opened once more
            if (file := self._files.get(node.id)) is None or (file.backing_id is None and file.copy is None):
                raise
            return
        if info is None or info.version != node.version or self.hot_now(info) != node.hot:
            self._tell_stale(node, pid)

    def _tell_stale(self, node: Node, pid: int) -> None:
        """ESTALE, unless the same thread was told so for this path and comes back: the kernel looks up again only once."""
        with self.lock:
            if (node.path, pid) in self._told_stale:
                return
            self._told_stale[node.path, pid] = None
            if len(self._told_stale) > TOLD_STALE:
                self._told_stale.popitem(last=False)
        raise Refused(errno.ESTALE)

    def _open_hot(self, file: OpenFile, may_wait: bool) -> Body:
        node = file.node
        if file.backing_id is None:
            if not may_wait:
                raise MustWait
            with self.lock:
                ready, _ = self._ready.pop((node.path, node.version), (None, 0.0))
            copy = ready or self._source.open(node.path, node.version)
            try:
                file.backing_id = self._device.open_backing(copy.fd) if copy.whole and copy.fd >= 0 else None
                if file.backing_id is None:
                    # Evicted since the look-up, or on a file system that cannot be passed through: the next look-up gives the cold node.
                    self.passthrough = self.passthrough and not copy.whole
                    self._believed.note_whole(node.path, node.version, copy.whole)
                    raise Refused(errno.ESTALE)
            finally:
                copy.close()
        return protocol.open_reply(node.id, OpenFlag.PASSTHROUGH | OpenFlag.NOFLUSH, file.backing_id)

    def _open_cold(self, file: OpenFile, pid: int, may_wait: bool) -> Body:
        node = file.node
        if file.copy is None:
            if not may_wait:
                raise MustWait
            copy = self._source.open(node.path, node.version)
            self._believed.note_whole(node.path, node.version, copy.whole)
            if self.passthrough and copy.whole and node.size_bytes > 0:  # it has become whole since the look-up
                self._flip(node, copy, pid)
            with self.lock:
                self._files.adopt(file, copy)
        return protocol.open_reply(node.id, OpenFlag.KEEP_CACHE | OpenFlag.NOFLUSH)

    def _flip(self, node: Node, copy: Copy, pid: int) -> None:
        """Have the kernel look up again, which gives the hot node; its open finds the copy at hand. Returns if that was tried already."""
        key = (node.path, node.version)
        with self.lock:
            if (node.path, pid) in self._told_stale:
                return
            if key in self._ready:
                self._ready.pop(key)[0].close()
            self._ready[key] = copy, time.monotonic() + READY_S
            if len(self._ready) > READY_COPIES:
                self._ready.popitem(last=False)[1][0].close()
        self._tell_stale(node, pid)

    def reap(self) -> None:
        """Give up what was closed, or made ready, a while ago."""
        with self.lock:
            self._files.reap()
            for key, (copy, until_s) in list(self._ready.items()):
                if until_s < time.monotonic():
                    del self._ready[key]
                    copy.close()

    def read(self, request: Request, may_wait: bool) -> Body:
        _, offset_bytes, size_bytes, _ = protocol.READ_IN.unpack_from(request.body)
        file = self._files.get(request.node)
        if file is None:
            raise Refused(errno.EBADF)
        try:
            return self._reading.read(file, offset_bytes, size_bytes, may_wait=may_wait)
        except StaleVersion:
            self._believed.doubt(file.node.path)
            raise

    def release(self, request: Request, may_wait: bool) -> Body:
        with self.lock:
            self._files.release(request.unique, request.node)
        return b""

    # --- folders ------------------------------------------------------------------------------------------------------------------

    def opendir(self, request: Request, may_wait: bool) -> Body:
        handle, unchanged = self._folders.open(self._node(request).path)
        return protocol.open_reply(handle, OpenFlag.CACHE_DIR | (OpenFlag.KEEP_CACHE if unchanged else 0))

    def readdir(self, request: Request, may_wait: bool) -> Body:
        handle, offset, size_bytes, _ = protocol.READ_IN.unpack_from(request.body)
        folder = self._node(request)
        plus = request.opcode == Opcode.READDIRPLUS
        lines = self._folders.read(handle, folder, offset, size_bytes, plus=plus, may_wait=may_wait)
        if not plus:
            return b"".join(line.packed for line in lines)
        with self.lock:
            known = [(line.info, self.hot_now(line.info)) for line in lines if line.info is not None]
            looked = iter(self._nodes.look(request.unique, known))
        bare = bytes(protocol.ENTRY_BYTES)
        return b"".join(
            (self._entry(next(looked), line.info) if line.info is not None else bare) + line.packed for line in lines
        )

    def releasedir(self, request: Request, may_wait: bool) -> Body:
        self._folders.close(protocol.RELEASE_IN.unpack_from(request.body)[0])
        return b""

    def folder_changed(self, path: str | None) -> None:
        self._folders.changed(path)

    # --- the rest -----------------------------------------------------------------------------------------------------------------

    def statfs(self, request: Request, may_wait: bool) -> Body:
        if not may_wait:
            raise MustWait
        space = self._source.space()
        return protocol.statfs_reply(
            blocks=space.total_bytes // 4096,
            free_blocks=space.free_bytes // 4096,
            files=space.files,
            block_bytes=4096,
            name_bytes=MAX_NAME_BYTES,
        )

    def getxattr(self, request: Request, may_wait: bool) -> Body:
        (room_bytes,) = protocol.XATTR_IN.unpack_from(request.body)
        name = bytes(request.body[protocol.XATTR_IN.size : len(request.body) - 1]).decode("utf-8", "replace")
        if not name.startswith("user.ckptstore."):  # security.*, system.*: asked at every exec and ls -l, and never there
            raise Refused(errno.ENODATA)
        value = self._attributes_of(request, may_wait).get(name)
        if value is None:
            raise Refused(errno.ENODATA)
        return _fitting(value, room_bytes)

    def listxattr(self, request: Request, may_wait: bool) -> Body:
        (room_bytes,) = protocol.XATTR_IN.unpack_from(request.body)
        return _fitting(b"".join(name.encode() + b"\0" for name in self._attributes_of(request, may_wait)), room_bytes)

    def _attributes_of(self, request: Request, may_wait: bool) -> dict[str, bytes]:
        node = self._node(request)
        try:
            info = self._believed.info(node.path, may_wait=may_wait)
        except NotFound:
            info = None
        return extended_attributes(node, info)

    def _node(self, request: Request) -> Node:
        return self._must(self._nodes.get(request.node))

    @staticmethod
    def _must(node: Node | None) -> Node:
        if node is None:
            raise Refused(errno.ESTALE)
        return node


def _name(data: bytes) -> str:
    if len(data) > MAX_NAME_BYTES:
        raise Refused(errno.ENAMETOOLONG)
    try:
        return check_segment(data.decode("utf-8"), whole="", reserved_allowed=True)
    except (UnicodeDecodeError, InvalidInput) as error:
        raise Refused(errno.ENOENT) from error


def _fitting(value: bytes, room_bytes: int) -> bytes:
    """Asked with room 0, the size; with too little, ERANGE."""
    if room_bytes == 0:
        return protocol.xattr_size(len(value))
    if len(value) > room_bytes:
        raise Refused(errno.ERANGE)
    return value
