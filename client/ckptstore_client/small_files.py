"""How do many small files leave the store? By the bundle: one question for a thousand, and their fsyncs side by side.

Each file's bytes are verified here against the catalog's digest, as everywhere. A file that did not come with its bundle (it is not near,
or was damaged on the way) is the caller's to get by itself. Durable when `write_bundle` returns: the files, not yet their names, which the
caller fsyncs with the folders.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ckptstore.bundle import unpack
from ckptstore.errors import ChecksumMismatch
from ckptstore.wire import FileInfo, Objects
from ckptstore_client.api import Api
from ckptstore_client.files import Tally, local_name, new_file, write_at
from ckptstore_tiers.checksums import BlockDigests

#: Files that are fsynced at once: one commit of the file system's journal serves many.
WRITERS = 16


def write_bundle(api: Api, files: Sequence[FileInfo], folder: Path, tally: Tally) -> list[FileInfo]:
    """What came of them into new files below `folder`, each whole and fsynced; gives those that did not come."""
    if len(files) < 2:
        return list(files)
    with api.stream("POST", "objects/contents", Objects(object_ids=[file.object_id for file in files])) as response:
        contents = dict(unpack(response.read()))
    right = [(file, contents[file.object_id]) for file in files if file.object_id in contents and _is_right(file, contents[file.object_id])]

    def write(first: int) -> None:
        for file, content in right[first::WRITERS]:
            with new_file(folder / local_name(file), file.size_bytes) as fd:
                write_at(fd, 0, content)
                os.fsync(fd)
            tally.add(file.size_bytes)

    with ThreadPoolExecutor(WRITERS, thread_name_prefix="ckptstore-get") as executor:
        for written in [executor.submit(write, first) for first in range(min(WRITERS, len(right)))]:
            written.result()
    came = {file.object_id for file, _ in right}
    return [file for file in files if file.object_id not in came]


def _is_right(file: FileInfo, content: memoryview) -> bool:
    digests = BlockDigests(file.size_bytes, file.blocks)
    if len(content) != file.size_bytes:
        return False
    try:
        for index in range(digests.count):
            digests.check(index, content, operation="get", subject=file.name)
    except ChecksumMismatch:
        return False
    return True
