"""Every file at or below a path of the tree, a page at a time. `@latest` is not followed: what it stands for comes under its own name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from ckptstore.tree_messages import FileListing, TreeInfo


class LooksAtTree(Protocol):
    async def look(self, path: str, *, resolve: bool = False) -> TreeInfo: ...

    async def list(self, path: str, *, after: str = "", limit: int = 1000) -> FileListing: ...


async def files_below(tree: LooksAtTree, top: TreeInfo) -> AsyncIterator[TreeInfo]:
    if top.kind == "file":
        yield top
        return
    folders = [top.path]
    while folders:
        folder, after = folders.pop(), ""
        while True:
            page = await tree.list(folder, after=after)
            for info in page.entries:
                if info.kind == "file":
                    yield info
                elif info.kind == "folder":
                    folders.append(info.path)
            if page.after is None:
                break
            after = page.after
