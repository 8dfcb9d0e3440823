"""How do finished files get their names, durably, and never over somebody else's?

Steps 3 to 5 of a put (see `posix`), for one file or for many that go into the same folder: the folder is made, the names are given, the
folder is fsynced once. A crash in between leaves some of the files whole under their names and the others unfinished; an error leaves none
under their names. Any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ckptstore.errors import TierUnavailable
from ckptstore.failpoints import declare
from ckptstore_tiers import disk_calls
from ckptstore_tiers.posix_folders import Folders
from ckptstore_tiers.posix_probe import PUBLISHERS
from ckptstore_tiers.posix_write import discard

PUBLISH = declare("posix.put.publish")
SYNC_FOLDER = declare("posix.put.fsync_folder")
WITHDRAW = declare("posix.put.withdraw")

#: How often a put whose folder is removed under it by somebody's delete makes it again before it gives up.
MAX_FOLDER_RACES = 20


class Naming:
    def __init__(self, folders: Folders, publisher: str, *, tier: str) -> None:
        """`publisher` is the call that never replaces, as the probe found it."""
        self._folders = folders
        self._give = PUBLISHERS[publisher]
        self._links = publisher == "link"
        self._tier = tier

    def give(self, folder_names: tuple[str, ...], files: Sequence[tuple[str, str]], tmp: int) -> set[str]:
        """The unfinished files in `tmp` get their names in the folder: pairs of both. Gives the names that something has already."""
        for _ in range(MAX_FOLDER_RACES):
            given: list[str] = []
            try:
                with self._folders.durable(folder_names) as folder:
                    return self._give_all(files, given, tmp, folder)
            except FileNotFoundError:
                if given:
                    break  # the folder cannot have gone: it is not empty
                self._folders.forget(folder_names)  # a delete removed the folder, empty as it was, before the first file came
        raise TierUnavailable(
            "the object's folder is removed again and again, or its unfinished file was",
            operation="put",
            subject="/".join((*folder_names, files[0][1])),
            tier=self._tier,
        )

    def _give_all(self, files: Sequence[tuple[str, str]], given: list[str], tmp: int, folder: int) -> set[str]:
        taken: set[str] = set()
        try:
            for unfinished, name in files:
                try:
                    self._give(PUBLISH, unfinished, name, dir_fd=tmp, new_dir_fd=folder)
                except FileExistsError:
                    discard(unfinished, dir_fd=tmp)
                    taken.add(name)
                else:
                    given.append(name)
            if given:
                disk_calls.fsync(SYNC_FOLDER, folder)
        except OSError:
            self._withdraw(given, folder)
            raise
        if self._links:
            for unfinished, name in files:
                if name not in taken:
                    discard(unfinished, dir_fd=tmp)
        return taken

    def withdraw(self, folder_names: tuple[str, ...], names: Sequence[str]) -> None:
        """Take names away that were given, because others of the same put could not be."""
        with suppress(OSError), self._folders.opened(folder_names) as folder:
            self._withdraw(names, folder)

    def _withdraw(self, names: Sequence[str], folder: int) -> None:
        """After an error nothing may be visible."""
        for name in names:
            with suppress(OSError):
                disk_calls.unlink(WITHDRAW, name, dir_fd=folder)
