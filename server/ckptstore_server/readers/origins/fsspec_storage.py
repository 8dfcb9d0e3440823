"""Anything that fsspec has a driver for, under the namespace.

Where the backend tells an ETag or a generation, that and the size are the version; elsewhere time and size are, and the file is called
best effort: a change that keeps both is not seen. fsspec has no conditional reads, so each read asks for the version behind it, and gives
nothing that may be of another one. It lists a folder at once: a folder of a million entries costs their memory.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import fsspec
import fsspec.exceptions

from ckptstore.errors import ConfigInvalid, NotFound, StaleVersion, TierUnavailable
from ckptstore_server.readers.origin import FileVersion
from ckptstore_server.readers.origins.storage import Found, FoundPage, inside, is_storable

T = TypeVar("T")

#: What backends call what changes with the content.
_VERSIONS = ("ETag", "etag", "generation", "content_md5", "md5Hash")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


class FsspecStorage:
    def __init__(self, url: str, options: dict[str, Any]) -> None:
        protocol = url.partition("://")[0]
        try:
            self._fs, root = fsspec.core.url_to_fs(url, **{"use_listings_cache": False} | options)
        except (ValueError, ImportError, TypeError) as error:
            # Not the error's own words: they may quote an option that is a secret.
            why = f"fsspec cannot open {protocol}:// with these options ({type(error).__name__})"
            hint = f"is the fsspec package for {protocol}:// installed?"
            raise ConfigInvalid(why, operation="attach", subject=url, hint=hint) from None
        self._root = root.rstrip("/")
        self._url = url.rstrip("/")
        self.identity = f"fsspec {url}"

    def look(self, name: str) -> Found:
        return _found(name, self._call("stat", name, self._fs.info, self._place(name)))

    def page(self, folder: str, after: str, limit: int) -> FoundPage:
        if not self.look(folder).is_folder:
            raise NotFound("it is a file", operation="list", subject=self.where(folder))
        found = {}
        for entry in self._call("list", folder, self._fs.ls, self._place(folder), detail=True):
            # An empty folder may be listed as an entry of itself.
            if (leaf := entry["name"].rstrip("/").rpartition("/")[2]) and entry["name"].rstrip("/") != self._place(folder):
                found[leaf] = entry
        names = sorted(name for name in found if is_storable(name))
        page = [name for name in names if name > after][:limit]
        entries = tuple(self._listed(inside(folder, name), found[name]) for name in page)
        skipped = len(found) - len(names) if not after else 0
        return FoundPage(entries, page[-1] if page and page[-1] != names[-1] else None, skipped)

    def _listed(self, name: str, entry: dict[str, Any]) -> Found:
        """Some backends list names alone (a web server); then each is asked for."""
        return _found(name, entry) if entry["type"] == "directory" or entry.get("size") is not None else self.look(name)

    def read_into(self, file: FileVersion, offset_bytes: int, into: memoryview) -> None:
        view = into.cast("B")
        place, stop = self._place(file.name), offset_bytes + len(view)
        try:
            data = self._call("read", file.name, self._fs.cat_file, place, start=offset_bytes, end=stop)
            found = self.look(file.name)
        except NotFound as error:
            raise StaleVersion("it was removed", operation="read", subject=self.where(file.name)) from error
        if found.upstream != file.upstream or len(data) != len(view):
            raise StaleVersion("it was changed since it was opened", operation="read", subject=self.where(file.name))
        view[:] = data

    def where(self, name: str) -> str:
        return f"{self._url}/{name}" if name else self._url

    def close(self) -> None:
        """fsspec's file systems hold nothing that a caller could give back."""

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _call(self, operation: str, name: str, act: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """`act(…)`, its failure as one of our errors. Backends raise what they like for an outage; OSError is what fsspec asks of them."""
        try:
            self._fs.invalidate_cache()
            return act(*arguments, **named)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFound("nothing is there", operation=operation, subject=self.where(name)) from error
        except (OSError, fsspec.exceptions.FSTimeoutError) as error:
            why = f"{type(error).__name__}: {error}"
            raise TierUnavailable(why, operation=operation, subject=self.where(name), tier=self._url) from error


def _found(name: str, entry: dict[str, Any]) -> Found:
    modified_s = _modified_s(entry)
    if entry["type"] == "directory":
        return Found(name, is_folder=True, modified_s=modified_s)
    size_bytes = int(entry["size"] or 0)
    version = next((str(entry[key]) for key in _VERSIONS if entry.get(key)), "")
    return Found(
        name,
        size_bytes=size_bytes,
        modified_s=modified_s,
        upstream=f"{version or modified_s}:{size_bytes}",
        best_effort=not version,
    )


def _modified_s(entry: dict[str, Any]) -> float:
    """Backends tell it under different names, as a number, a text or a datetime."""
    value = next((entry[name] for name in _TIMES if entry.get(name) is not None), 0.0)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else float(value)
