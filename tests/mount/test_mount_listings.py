"""The kernel keeps a folder's listing as long as nothing is told of a change, however the source divides it into pages."""

from __future__ import annotations

import pytest

from ckptstore.tree_messages import FileListing, TreeInfo
from ckptstore_client.mount.believed import Believed
from ckptstore_client.mount.folders import Folders
from ckptstore_client.mount.nodes import Node

PAGE = 4


class Pages:
    """A source whose pages have four entries; like the daemon, it sees only at the next page that a full one was the last."""

    def __init__(self, entries: int) -> None:
        self.infos = [TreeInfo(path=f"/run/{number:02}", kind="file", version=f"v{number}") for number in range(entries)]

    def list(self, path: str, after: str | None) -> FileListing:
        later = [info for info in self.infos if after is None or info.path > f"{path}/{after}"][:PAGE]
        return FileListing(entries=later, after=later[-1].path.rpartition("/")[2] if len(later) == PAGE else None)


@pytest.mark.parametrize("entries", [1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])
def test_a_listing_that_was_read_to_its_end_is_kept_until_something_changed(entries: int) -> None:
    source = Pages(entries)
    believed = Believed(source, believed_s=0.0)  # type: ignore[arg-type]
    believed.told_of(True)
    folders = Folders(source, believed)  # type: ignore[arg-type]
    folder = Node(2, "/run", "folder", "", 0, 0, None, hot=False)
    handle, unchanged = folders.open("/run")
    assert not unchanged
    offset = 0
    while lines := folders.read(handle, folder, offset, 4096, plus=False, may_wait=True):
        offset += len(lines)
    assert offset == 2 + entries
    assert folders.open("/run")[1]
    folders.changed("/run")
    assert not folders.open("/run")[1]


def test_of_an_empty_folder_the_kernel_keeps_nothing() -> None:
    source = Pages(0)
    believed = Believed(source, believed_s=0.0)  # type: ignore[arg-type]
    believed.told_of(True)
    folders = Folders(source, believed)  # type: ignore[arg-type]
    folder = Node(2, "/run", "folder", "", 0, 0, None, hot=False)
    handle, _ = folders.open("/run")
    assert len(folders.read(handle, folder, 0, 4096, plus=False, may_wait=True)) == 2
    assert not folders.open("/run")[1]
