"""A store whose tree is read in the test's own process: its daemon's services, without the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ckptstore.config import read_settings
from ckptstore.tree_messages import AttachmentInfo, AttachStorage, TreeInfo
from ckptstore_server.daemon import open_node
from ckptstore_server.readers.origin import FileVersion, Origin
from ckptstore_server.services import Services
from tests.daemon_process import write_config

T = TypeVar("T")


class Inside:
    """The services of one home. Between calls its event loop stands still."""

    def __init__(self, home: Path) -> None:
        self.node = open_node(read_settings(home / "config.toml", home=home))
        self._runner = asyncio.Runner()
        for handle in self.node.handles:
            handle.open()
        self.services = Services.build(self.node, lambda: None)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def open(self, path: str, version: str = "") -> tuple[FileVersion, Origin]:
        return self.run(self.services.tree.open(path, version))

    def names(self, path: str, limit: int = 1000) -> list[str]:
        """A whole listing, page by page."""
        names, after = [], ""
        while True:
            page = self.run(self.services.tree.list(path, after=after, limit=limit))
            assert len(page.entries) <= limit
            names += [entry.path.rpartition("/")[2] for entry in page.entries]
            if page.after is None:
                return names
            assert page.entries, "a page without entries says that it was the last"
            after = page.after

    def close(self) -> None:
        self._runner.close()
        self.services.attached.close()
        self.node.close()


    def attach(self, url: object, path: str, *, refresh_s: float = 0.0, **options: Any) -> AttachmentInfo:
        return self.run(self.services.attached.attach(AttachStorage(url=str(url), path=path, refresh_s=refresh_s, **options)))

    def look(self, path: str, *, resolve: bool = False) -> TreeInfo:
        return self.run(self.services.tree.look(path, resolve=resolve))

    def read(self, path: str, version: str = "") -> bytes:
        return content_of(*self.open(path, version))


@contextmanager
def inside(home: Path) -> Iterator[Inside]:
    """The store at `home`; a new one with a single tier if there is none."""
    if not (home / "config.toml").exists():
        write_config(home, tiers=[{"name": "nvme", "kind": "posix", "path": home / "nvme"}], memory={"limit": "64MiB"})
    opened = Inside(home)
    try:
        yield opened
    finally:
        opened.close()


def content_of(file: FileVersion, origin: Origin, start: int = 0, stop: int | None = None) -> bytes:
    data = bytearray((file.size_bytes if stop is None else stop) - start)
    origin.read_into(file, start, memoryview(data))
    return bytes(data)
