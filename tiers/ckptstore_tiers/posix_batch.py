"""How do many small files enter a posix tier for less than each would cost by itself?

One after the other, a file of a few hundred bytes costs milliseconds: two fsyncs, its own and its folder's, and each waits for a commit of
the file system's journal. Here all are written side by side, so that one commit serves many fsyncs, then named, and each folder is fsynced
once. 2,000 files of 100 bytes on ext4: 8 ms a file one after the other, 0.2 ms so (a busy machine; `syncfs` takes as long, and would also
write what others have not written yet).

The steps, and what a crash leaves, are those of a single put (see `posix`), each taken for all files before the next: every file is on the
disk before any of them has a name. After an error none has one. A file whose fsync failed is written anew. The bytes are the caller's,
private and unchanging until the put returns. Any thread.
"""

from __future__ import annotations

import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

from ckptstore_tiers.checksums import BlockDigests
from ckptstore_tiers.key_locks import KeyLocks
from ckptstore_tiers.keys import check_key, unfinished_owner
from ckptstore_tiers.posix_errors import translated
from ckptstore_tiers.posix_folders import Folders
from ckptstore_tiers.posix_naming import Naming
from ckptstore_tiers.posix_space import Space
from ckptstore_tiers.posix_write import WriteWays, discard, write_all, write_file

#: Fsyncs under way at once. From eight on the disk that was measured commits as many files a second.
WRITERS = 16
#: Less than a page is not worth O_DIRECT's padding and cutting.
BUFFERED = WriteWays(direct=False, preallocate=False)

#: (folder for unfinished files, unfinished name, digests): read the file back past the caches and compare, where a tier has to
ReadBack = Callable[[str, int, str, BlockDigests], None]


class SmallPuts:
    """Puts of many at once into one tier. `put_alone` deals with a key that something has already; `read_back` is None for a local disk."""

    def __init__(
        self,
        folders: Folders,
        naming: Naming,
        space: Space,
        locks: KeyLocks,
        *,
        tier: str,
        read_back: ReadBack | None,
        put_alone: Callable[[str, memoryview], BlockDigests],
    ) -> None:
        self._folders = folders
        self._naming = naming
        self._space = space
        self._locks = locks
        self._tier = tier
        self._read_back = read_back
        self._put_alone = put_alone

    def put(self, files: Sequence[tuple[str, memoryview]]) -> list[BlockDigests]:
        """Store the bytes under their keys, all of them, durable at return; or none, after an error."""
        places = [self._split(key) for key, _ in files]
        digests = [BlockDigests.of(data) for _, data in files]
        size_bytes = sum(len(data) for _, data in files)
        with ExitStack() as held:
            for key in sorted({key for key, _ in files}):
                held.enter_context(self._locks.held(key))
            held.enter_context(self._space.reserved(size_bytes, operation="put", key=files[0][0]))
            with translated("put", files[0][0], self._tier), self._folders.unfinished() as tmp:
                unfinished = [f"{unfinished_owner(key)}.{secrets.token_hex(6)}" for key, _ in files]
                try:
                    self._write(files, unfinished, digests, tmp)
                    taken = self._name(places, unfinished, tmp)
                except BaseException:
                    for name in unfinished:
                        discard(name, dir_fd=tmp)
                    raise
            new_bytes = size_bytes - sum(len(files[index][1]) for index in taken)
            self._space.changed(new_bytes)
        try:
            for index in taken:
                self._put_alone(*files[index])
        except BaseException:
            for index in set(range(len(files))).difference(taken):
                self._naming.withdraw(places[index][0], [places[index][1]])
            self._space.changed(-new_bytes)
            raise
        return digests

    def _split(self, key: str) -> tuple[tuple[str, ...], str]:
        *names, name = check_key(key, operation="put", tier=self._tier).split("/")
        return tuple(names), name

    def _write(self, files: Sequence[tuple[str, memoryview]], unfinished: Sequence[str], digests: Sequence[BlockDigests], tmp: int) -> None:
        """Steps 1 and 2, several files at once. The first error ends it, when nothing is being written any more."""
        writers, failed = min(WRITERS, len(files)), threading.Event()

        def write_some(first: int) -> None:
            try:
                for index in range(first, len(files), writers):
                    if failed.is_set():
                        return
                    key, data = files[index]
                    write_file(unfinished[index], len(data), partial(_fill, data), dir_fd=tmp, ways=BUFFERED)
                    if self._read_back is not None:
                        self._read_back(key, tmp, unfinished[index], digests[index])
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(writers, thread_name_prefix=f"ckptstore-{self._tier}-small") as executor:
            running = [executor.submit(write_some, first) for first in range(writers)]
        for task in running:
            task.result()

    def _name(self, places: Sequence[tuple[tuple[str, ...], str]], unfinished: Sequence[str], tmp: int) -> list[int]:
        """Steps 3 to 5, folder by folder. Which of the files met something that has their key already."""
        by_folder: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, (folder, _) in enumerate(places):
            by_folder[folder].append(index)
        taken: list[int] = []
        named: list[tuple[tuple[str, ...], list[str]]] = []
        try:
            for folder, members in by_folder.items():
                there = self._naming.give(folder, [(unfinished[index], places[index][1]) for index in members], tmp)
                taken += [index for index in members if places[index][1] in there]
                named.append((folder, [places[index][1] for index in members if places[index][1] not in there]))
        except BaseException:
            for folder, names in named:
                self._naming.withdraw(folder, names)
            raise
        return taken


def _fill(data: memoryview, fd: int, direct: bool) -> None:
    write_all(fd, data, 0)
