"""What would a disk hold if the power failed now? A model of what has been fsynced, and what has not.

`PowerCutDisk` watches the labelled system calls (`ckptstore_tiers.disk_calls.witnessed_by`) below one folder. It knows, for
every file, the bytes that an fsync of it made durable, and for every folder, the entries that an fsync of it made durable.
Between two calls it can tell what survives: an `Image`, which `materialise` writes into another folder.

POSIX promises little about the rest, and file systems differ, so there are three images of each moment:

    STRICT       nothing that was not fsynced is there: neither data nor names
    NAMES_KEPT   the names are as they were (a journal committed them), but data that was not fsynced is lost: a file that
                 was never fsynced is empty. This is what "rename without fsync" looks like after a crash
    ALL_KEPT     everything the process did is there: a crash of the process alone, or luck

Data that was fsynced once and changed later counts as it was at the fsync. The folder of copies that readers made (`keys.COPIES`) is not
looked at: a power cut may take it, and its own tests say what then holds. One thread at a time is shown to the model.
"""

from __future__ import annotations

import os
import stat
import threading
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from ckptstore_tiers.keys import COPIES


class Survives(Enum):
    STRICT = "strict"
    NAMES_KEPT = "names kept"
    ALL_KEPT = "all kept"


@dataclass(frozen=True)
class Image:
    """A tree of values: bytes for a file, an Image for a folder."""

    entries: dict[str, bytes | Image]

    def materialise(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for name, entry in self.entries.items():
            if isinstance(entry, bytes):
                (folder / name).write_bytes(entry)
            else:
                entry.materialise(folder / name)


@dataclass
class _File:
    durable_bytes: bytes = b""


@dataclass
class _Folder:
    durable_entries: dict[str, int] = field(default_factory=dict)  # name → serial


@dataclass(frozen=True)
class Moment:
    """Right before the call `label` (or, with the label "returned", after the whole operation): what would survive."""

    label: str
    call: str
    images: dict[Survives, Image]


class PowerCutDisk:
    """A witness. `moments` holds an image before each call that was seen since `moments` was last emptied."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._nodes: dict[int, _File | _Folder] = {}
        self._serial_of: dict[tuple[int, int], int] = {}
        self.moments: list[Moment] = []
        self.unwatched: set[str] = set()
        self._adopt(root)

    # -- the witness --------------------

    def before(self, label: str, call: str, arguments: tuple[Any, ...]) -> None:
        with self._lock:
            if call not in ("preadv", "open_folder"):
                self.moments.append(self._moment(label, call))

    def after(self, label: str, call: str, arguments: tuple[Any, ...], result: Any) -> None:
        with self._lock:
            if call == "open" and arguments[1] & os.O_CREAT:
                self._new(os.fstat(result), _File())
            elif call == "mkdir":
                name, dir_fd = arguments
                self._new(os.stat(name, dir_fd=dir_fd, follow_symlinks=False), _Folder())
            elif call == "fsync":
                self._fsynced(arguments[0])

    def now(self, label: str = "returned") -> Moment:
        with self._lock:
            return self._moment(label, "")

    # -- the model --------------------

    def _adopt(self, path: Path) -> int:
        """Take what is there as durable."""
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode):
            return self._new(found, _Folder({child.name: self._adopt(child) for child in path.iterdir() if child.name != COPIES}))
        return self._new(found, _File(path.read_bytes()))

    def _new(self, found: os.stat_result, node: _File | _Folder) -> int:
        """A new serial: the kernel gives the numbers of removed files to new ones."""
        serial = len(self._nodes)
        self._nodes[serial] = node
        self._serial_of[(found.st_dev, found.st_ino)] = serial
        return serial

    def _serial(self, found: os.stat_result) -> int:
        return self._serial_of[(found.st_dev, found.st_ino)]

    def _fsynced(self, fd: int) -> None:
        found = os.fstat(fd)
        key = (found.st_dev, found.st_ino)
        if key not in self._serial_of:
            return  # outside the root: its parent
        node = self._nodes[self._serial_of[key]]
        if isinstance(node, _File):
            node.durable_bytes = Path(f"/proc/self/fd/{fd}").read_bytes()
        else:
            with os.scandir(fd) as entries:
                named = [entry for entry in entries if entry.name != COPIES]
                node.durable_entries = {entry.name: self._serial(entry.stat(follow_symlinks=False)) for entry in named}

    def image(self, survives: Survives) -> Image:
        """What is left if the power fails now."""
        with self._lock:
            return self._image(survives)

    def _moment(self, label: str, call: str) -> Moment:
        return Moment(label, call, {survives: self._image(survives) for survives in Survives})

    def _image(self, survives: Survives) -> Image:
        if survives is Survives.STRICT:
            return self._durable(self._serial(self._root.lstat()))
        return self._as_it_is(self._root, with_data=survives is Survives.ALL_KEPT)

    def _durable(self, serial: int) -> Image:
        node = self._nodes[serial]
        assert isinstance(node, _Folder)
        entries: dict[str, bytes | Image] = {}
        for name, child in node.durable_entries.items():
            below = self._nodes[child]
            entries[name] = below.durable_bytes if isinstance(below, _File) else self._durable(child)
        return Image(entries)

    def _as_it_is(self, folder: Path, *, with_data: bool) -> Image:
        entries: dict[str, bytes | Image] = {}
        for child in (child for child in folder.iterdir() if child.name != COPIES):
            node = self._nodes[self._serial(child.lstat())]
            if isinstance(node, _Folder):
                entries[child.name] = self._as_it_is(child, with_data=with_data)
            else:
                entries[child.name] = child.read_bytes() if with_data else node.durable_bytes
        return Image(entries)
