"""How does what lies in attached storage become files here? Each file is one version of it, read through the daemon, which keeps a copy.

The files of a folder are not from one moment: storage of others has none. A file that is replaced upstream while it is copied is begun
anew, so that it is wholly old or wholly new. Several files move at once, and nothing of them is held whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from ckptstore.errors import StaleVersion
from ckptstore.paths import check_relative
from ckptstore.tree_messages import TreeInfo
from ckptstore_client.files import Tally, new_file, write_at
from ckptstore_client.tree import Tree

WORKERS = 4
PIECE_BYTES = 16 << 20
#: How often a file that is replaced upstream again and again is begun.
TRIES = 3


def write_tree(tree: Tree, top: TreeInfo, target: Path, tally: Tally) -> None:
    """The file, or all below the folder, into `target`, fsynced. The first error ends it."""
    if top.kind == "file":
        tally.expect(top.size_bytes)
        _write_file(tree, top, target, tally)
        return
    under_way: set[Future[None]] = set()
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="ckptstore-get") as executor:
        try:
            for info in _walk(tree, top):
                # Checked again here: a name comes from outside, and must not lead out of the folder that is being written.
                place = target / check_relative(info.path[len(top.path) + 1 :], operation="get")
                if info.kind == "folder":
                    place.mkdir(parents=True, exist_ok=True)
                    continue
                tally.expect(info.size_bytes)
                if len(under_way) >= 2 * WORKERS:
                    under_way = _still(under_way)
                under_way.add(executor.submit(_write_file, tree, info, place, tally))
            while under_way:
                under_way = _still(under_way)
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)
            raise


def _walk(tree: Tree, top: TreeInfo) -> Iterator[TreeInfo]:
    for info in tree.list(top.path):
        yield info
        if info.kind == "folder":
            yield from _walk(tree, info)


def _still(under_way: set[Future[None]]) -> set[Future[None]]:
    """Those that go on, once one has ended; its error is raised."""
    done, others = wait(under_way, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return others


def _write_file(tree: Tree, info: TreeInfo, target: Path, tally: Tally) -> None:
    for tries_left in reversed(range(TRIES)):
        try:
            _write_version(tree, info.path, target, tally)
            return
        except StaleVersion:
            target.unlink(missing_ok=True)
            if not tries_left:
                raise


def _write_version(tree: Tree, path: str, target: Path, tally: Tally) -> None:
    with tree.open(path) as file, new_file(target, file.info.size_bytes) as fd:
        for start in range(0, file.info.size_bytes, PIECE_BYTES):
            piece = file.read(start, start + PIECE_BYTES)
            write_at(fd, start, memoryview(piece))
            tally.add(len(piece))
        os.fsync(fd)
