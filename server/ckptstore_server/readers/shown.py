"""What does a file of attached storage look like in the tree, and which version of it is opened?

The event loop's thread calls. A version is named by a digest of where the file lies and of what its storage calls the version there.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from ckptstore.catalog.model import Attachment
from ckptstore.errors import InvalidInput, StaleVersion
from ckptstore.paths import MAX_PATH_BYTES, is_below, join
from ckptstore.tree_messages import FileListing, TreeInfo
from ckptstore_server.readers.origin import FileVersion
from ckptstore_server.readers.origins.answers import Answers
from ckptstore_server.readers.origins.storage import Found

#: How often a file that goes on changing is looked at before its opening is given up.
SETTLING_LOOKS = 3


@dataclass(frozen=True)
class Shown:
    """A path at or below an attachment."""

    attachment: Attachment
    answers: Answers
    name: str

    @property
    def path(self) -> str:
        return self._path(self.name)

    async def look(self) -> TreeInfo:
        if not self.name:  # it is there whatever the storage says
            return TreeInfo(path=self.path, kind="folder", origin=self.attachment.url)
        return self._info(await self.answers.look(self.name))

    def look_among(self, kept: Iterable[FileVersion]) -> TreeInfo | None:
        """What is there to judge by files that were read from here: enough to open one of them again. A listing would lack the others."""
        for file in kept:
            if file.path == self.path:
                return TreeInfo(
                    path=file.path, kind="file", size_bytes=file.size_bytes, version=file.version, modified_s=file.modified_s,
                    sha256=file.sha256, origin=file.where, best_effort=file.best_effort,
                )  # fmt: skip
            if is_below(file.path, self.path):
                return TreeInfo(path=self.path, kind="folder", origin=self.answers.storage.where(self.name))
        return None

    async def list(self, after: str, limit: int) -> FileListing:
        page = await self.answers.page(self.name, after, limit)
        good_for_s = self.answers.page_good_for_s(self.name, after, limit)
        fitting = [entry for entry in page.entries if len(self._path(entry.name).encode()) <= MAX_PATH_BYTES]
        skipped = page.skipped + len(page.entries) - len(fitting)
        return FileListing(entries=[self._info(entry) for entry in fitting], after=page.after, skipped=skipped, good_for_s=good_for_s)

    async def open(self, version: str) -> FileVersion:
        """The file's version; one that is too young to be trusted is waited for."""
        found = await self._settled()
        if version and version != self._version(found):
            self.answers.forget(self.name)  # what is known may be older than who asks
            found = await self._settled()
        now = self._version(found)
        if version and version != now:
            why = "it is another version now, and the one that was opened is gone"
            raise StaleVersion(why, operation="open", subject=self.path, hint="open it again")
        if found.is_folder:
            raise InvalidInput("it is a folder", operation="open", subject=self.path, hint="list it")
        where = self.answers.storage.where(self.name)
        return FileVersion(
            now, self.path, found.size_bytes, found.modified_s, where,
            best_effort=found.best_effort, name=self.name, upstream=found.upstream,
        )  # fmt: skip

    async def _settled(self) -> Found:
        for _ in range(SETTLING_LOOKS):
            found = await self.answers.look(self.name)
            if not found.settles_in_s:
                return found
            await asyncio.sleep(found.settles_in_s)
            self.answers.forget(self.name)
        raise StaleVersion("it is being written", operation="open", subject=self.path, hint="open it when it is finished")

    def _path(self, name: str) -> str:
        return join(self.attachment.path, name) if name else self.attachment.path

    def _info(self, found: Found) -> TreeInfo:
        return TreeInfo(
            path=self._path(found.name),
            kind="folder" if found.is_folder else "file",
            size_bytes=found.size_bytes,
            version="" if found.is_folder else self._version(found),
            modified_s=found.modified_s,
            origin=self.answers.storage.where(found.name),
            best_effort=found.best_effort,
        )

    def _version(self, found: Found) -> str:
        told = "\0".join((self.answers.storage.identity, found.name, found.upstream, str(found.size_bytes)))
        return hashlib.blake2b(told.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
