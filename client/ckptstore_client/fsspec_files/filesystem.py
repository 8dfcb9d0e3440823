"""`ckpt://`: the store as an fsspec file system, for pandas, pyarrow, torch.distributed.checkpoint and everything else that opens URLs.

    ckpt:///runs/data.parquet               this node's daemon, or what CKPTSTORE_URL names
    ckpt://runs/data.parquet                the same: what has no port is the first folder
    ckpt://node-7:8900/runs/data.parquet    a daemon over the network; storage_options={"token": …}, or CKPTSTORE_TOKEN

A file is visible when it is closed, whole, and in a durable tier; `mv` is one transaction. There are no empty folders: one exists as long
as something lies below it, so `mkdir` only refuses what could not be. What was saved or put as a whole folder is closed: its files are
read, not replaced or removed one by one. `@latest` may be part of a path, and is not listed. Nothing is cached here; a file object reads
one version, whatever happens at its path.

Instances may be used from several threads, and in forked children; they are pickled by their arguments.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from fsspec.spec import AbstractFileSystem
from fsspec.utils import isfilelike, stringify_path

from ckptstore.paths import join, parent_and_name
from ckptstore.tree_messages import TreeInfo
from ckptstore_client.connecting import connect
from ckptstore_client.fsspec_files.faults import as_python_errors
from ckptstore_client.fsspec_files.new_bytes import filled_bytes
from ckptstore_client.fsspec_files.new_file import NewFile
from ckptstore_client.fsspec_files.ranges import Range, clipped, read_ranges
from ckptstore_client.fsspec_files.read_file import ReadFile
from ckptstore_client.store import Store
from ckptstore_client.tree import TreeFile

_SCHEME = "ckpt://"
#: What is copied to a local file at once.
PIECE_BYTES = 64 << 20


class CkptFileSystem(AbstractFileSystem):  # type: ignore[misc]
    protocol = "ckpt"
    root_marker = "/"
    _connecting_once: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        url: str | None = None,
        token: str | None = None,
        home: str | None = None,
        start: bool = True,
        timeout_s: float = 60.0,
        **options: Any,
    ) -> None:
        """`host` and `port` come from the URL; `url` ("https://…") may say the same. All else as for `ckptstore.connect`."""
        super().__init__(**options)
        if url is None and host is not None:
            url = f"http://{host}:{port}"
        self._connecting: dict[str, Any] = {"url": url, "token": token, "home": home, "start": start, "timeout_s": timeout_s}
        self._authority = f"{host}:{port}" if host is not None else ""
        self._store: Store | None = None

    @property
    def store(self) -> Store:
        """The store behind it, connected at the first use."""
        with self._connecting_once:
            if self._store is None:
                self._store = connect(**self._connecting)
            return self._store

    # --- names -------------------------------------------------------------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(item) for item in path]
        text = str(stringify_path(path))
        if text.startswith(_SCHEME):
            _, text = _split(text)
        return "/" + text.strip("/") if text.strip("/") else "/"

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        host, _ = _split(path) if path.startswith(_SCHEME) else ("", path)
        name, _, port = host.rpartition(":")
        return {"host": name, "port": int(port)} if host else {}

    def unstrip_protocol(self, name: str) -> str:
        return f"{_SCHEME}{self._authority}{self._strip_protocol(name)}"

    @classmethod
    def _parent(cls, path: str) -> str:
        return parent_and_name(cls._strip_protocol(path))[0]

    # --- what is there -----------------------------------------------------------------------------------------------------------

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        with as_python_errors(path):
            return _described(self.store.tree.look(path), path)

    def exists(self, path: str, **_: Any) -> bool:
        """A path that could not be is not there; a store that does not answer is an error."""
        try:
            self.info(path)
        except (FileNotFoundError, ValueError):
            return False
        return True

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        try:
            with as_python_errors(path):
                entries = [entry for entry in self.store.tree.list(path) if entry.kind != "link"]
            found = [_described(entry, join(path, parent_and_name(entry.path)[1])) for entry in entries]
        except FileNotFoundError:
            found = [self.info(path)]
            if found[0]["type"] != "file":
                raise
        return found if detail else [entry["name"] for entry in found]

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(self.info(path)["mtime"], UTC)

    created = modified

    def ukey(self, path: str) -> str:
        """Names the file's bytes."""
        return str(self.info(path)["version"])

    # --- reading -----------------------------------------------------------------------------------------------------------------

    def _open(
        self, path: str, mode: str = "rb", block_size: Any = None, autocommit: bool = True, cache_options: Any = None, **options: Any
    ) -> Any:
        path = self._strip_protocol(path)
        if mode != "rb":
            return self._open_new(path, mode, autocommit)
        opened = self._opened(path)
        cache_type = options.pop("cache_type", "readahead")
        return ReadFile(self, path, opened, block_size=block_size, cache_type=cache_type, cache_options=cache_options)

    def _opened(self, path: str) -> TreeFile:
        try:
            with as_python_errors(path):
                return self.store.tree.open(path)
        except ValueError:
            self._refuse_folder(path)
            raise

    def _refuse_folder(self, path: str) -> None:
        if self.info(path)["type"] != "file":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = self._strip_protocol(path)
        with self._opened(path) as opened, as_python_errors(path):
            first, stop = clipped(start, end, opened.info.size_bytes)
            return filled_bytes(stop - first, partial(opened.read_into, first))

    def cat_ranges(
        self, paths: Sequence[str], starts: Any, ends: Any, max_gap: Any = None, on_error: str = "return", **_: Any
    ) -> list[Any]:
        """Each file is opened once, so that all its ranges are of one version."""
        each = [value if isinstance(value, Iterable) else [value] * len(paths) for value in (starts, ends)]
        wanted: dict[str, list[tuple[int, Any, Any]]] = {}
        for index, (path, start, end) in enumerate(zip(paths, *each, strict=True)):
            wanted.setdefault(self._strip_protocol(path), []).append((index, start, end))
        found: list[Any] = [None] * len(paths)
        for path, ranges in wanted.items():
            try:
                with as_python_errors(path), self.store.tree.open(path) as opened:
                    clips = [Range(index, *clipped(start, end, opened.info.size_bytes)) for index, start, end in ranges]
                    for index, data in read_ranges(opened, clips).items():
                        found[index] = data
            except (OSError, ValueError) as error:
                if on_error == "raise":
                    raise
                for index, _start, _end in ranges:
                    found[index] = error
        return found

    def get_file(self, rpath: str, lpath: Any, callback: Any = None, outfile: Any = None, **_: Any) -> None:
        """In large pieces, each of several blocks that are read and verified at once."""
        path = self._strip_protocol(rpath)
        if outfile is None and self.isdir(path):
            Path(lpath).mkdir(parents=True, exist_ok=True)
            return
        with as_python_errors(path), self.store.tree.open(path) as opened, ExitStack() as stack:
            if outfile is None and not isfilelike(lpath):
                Path(lpath).parent.mkdir(parents=True, exist_ok=True)
                outfile = stack.enter_context(open(lpath, "wb"))
            _copy_out(opened, outfile or lpath, callback)

    # --- writing -----------------------------------------------------------------------------------------------------------------

    def _open_new(self, path: str, mode: str, autocommit: bool) -> NewFile:
        if mode == "xb" and self.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        new = NewFile(path, mode, lambda local, replace: self._put(local, path, replace), autocommit=autocommit)
        if mode == "ab" and self.exists(path):
            new.write(self.cat_file(path))
        return new

    def _put(self, local: Path, path: str, replace: bool) -> None:
        with as_python_errors(path):
            self.store.put(local, path, replace=replace)

    def put_file(self, lpath: str, rpath: str, callback: Any = None, mode: str = "overwrite", **_: Any) -> None:
        """The daemon reads the local file by itself."""
        if Path(lpath).is_dir():
            self.makedirs(rpath, exist_ok=True)
            return
        self._put(Path(lpath), self._strip_protocol(rpath), mode != "create")
        if callback is not None:
            size_bytes = Path(lpath).stat().st_size
            callback.set_size(size_bytes)
            callback.relative_update(size_bytes)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        if self.isdir(path1):
            self.makedirs(path2, exist_ok=True)
            return
        with self.open(path1, "rb") as source, self.open(path2, "wb") as target:
            while data := source.read(source.blocksize):
                target.write(data)

    def mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **_: Any) -> None:
        """In one transaction for each pair. A file replaces a file; what is moved to a folder that is there is moved into it."""
        if isinstance(path1, list | tuple):
            for source, target in zip(path1, path2, strict=True):
                self.mv(source, target)
            return
        into = str(path2).endswith("/")
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if into or self.isdir(target):
            target = join(target, parent_and_name(source)[1])
        if source != target:
            with as_python_errors(source):
                self.store.mv(source, target, replace=not self.isdir(source))

    # --- folders and removing ------------------------------------------------------------------------------------------------------

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        self.makedirs(path, exist_ok=False)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Refuses what could not be; a folder comes with the first file in it."""
        path = self._strip_protocol(path)
        try:
            there = self.info(path)["type"]
        except FileNotFoundError:
            return
        if there == "file" or not exist_ok:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)

    def rmdir(self, path: str) -> None:
        self.info(path)
        raise OSError(errno.ENOTEMPTY, "a folder goes with the last file in it; remove it recursively", self._strip_protocol(path))

    def rm_file(self, path: str) -> None:
        path = self._strip_protocol(path)
        self._refuse_folder(path)
        with as_python_errors(path):
            self.store.rm(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """A folder goes in one transaction."""
        if maxdepth is not None:
            super().rm(path, recursive=recursive, maxdepth=maxdepth)
            return
        for item in path if isinstance(path, list | tuple) else [path]:
            for found in self.expand_path(item) if _has_wildcard(str(item)) else [self._strip_protocol(item)]:
                if recursive and self.isdir(found):
                    with as_python_errors(found):
                        self.store.rm(found, recursive=True)
                else:
                    self.rm_file(found)


def _copy_out(opened: TreeFile, target: Any, callback: Any) -> None:
    buffer = memoryview(bytearray(min(PIECE_BYTES, opened.info.size_bytes)))
    if callback is not None:
        callback.set_size(opened.info.size_bytes)
    for start in range(0, opened.info.size_bytes, PIECE_BYTES):
        piece = buffer[: opened.info.size_bytes - start]
        opened.read_into(start, piece)
        target.write(piece)
        if callback is not None:
            callback.relative_update(len(piece))


def _split(url: str) -> tuple[str, str]:
    """`ckpt://host:8900/a/b` → (`host:8900`, `/a/b`); without a port there is no host: `ckpt://a/b` → (``, `/a/b`)."""
    first, slash, rest = url.removeprefix(_SCHEME).partition("/")
    _, colon, port = first.rpartition(":")
    return (first, slash + rest) if colon and port.isdigit() else ("", f"/{first}{slash}{rest}")


def _described(info: TreeInfo, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "file" if info.kind == "file" else "directory",
        "size": info.size_bytes,
        "mtime": info.modified_s,
        "version": info.version,
        "sha256": info.sha256,
        "origin": info.origin,
        "durability": list(info.durability),
    }


def _has_wildcard(path: str) -> bool:
    return any(character in path for character in "*?[")
