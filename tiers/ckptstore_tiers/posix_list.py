"""What is below a posix tier's root? A walk that holds one open folder per level, and never a whole listing.

Files that come or go meanwhile may or may not be seen. Links, devices and names that no key could have are passed over:
somebody else put them there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ckptstore.errors import InvalidInput
from ckptstore_tiers.interface import ObjectStat
from ckptstore_tiers.keys import UNFINISHED, check_key
from ckptstore_tiers.posix_errors import ABSENT
from ckptstore_tiers.posix_folders import Folders


def list_files(folders: Folders, prefix: str, *, tier: str) -> Iterator[ObjectStat]:
    """Every file whose key begins with `prefix`. Raises OSError where a folder cannot be read for another reason than absence."""
    start = prefix.rpartition("/")[0]
    if start:
        try:
            check_key(start, operation="list", tier=tier)
        except InvalidInput:
            return  # no key begins like that
    yield from _walk(folders, tuple(start.split("/")) if start else (), prefix, tier)


def _walk(folders: Folders, names: tuple[str, ...], prefix: str, tier: str) -> Iterator[ObjectStat]:
    try:
        with folders.opened(names) as folder, os.scandir(folder) as entries:
            for entry in entries:
                if not names and entry.name == UNFINISHED:
                    continue
                key = "/".join((*names, entry.name))
                if entry.is_dir(follow_symlinks=False):
                    if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"):
                        yield from _walk(folders, (*names, entry.name), prefix, tier)
                elif key.startswith(prefix) and entry.is_file(follow_symlinks=False):
                    yield from _one(entry, key, tier)
    except OSError as error:
        if error.errno not in ABSENT:
            raise


def _one(entry: os.DirEntry[str], key: str, tier: str) -> Iterator[ObjectStat]:
    try:
        found = entry.stat(follow_symlinks=False)
        yield ObjectStat(check_key(key, operation="list", tier=tier), found.st_size, found.st_mtime)
    except (FileNotFoundError, InvalidInput):
        return
