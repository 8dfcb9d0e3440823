"""Which storage of others answers for a path, and what does it say in the words of the tree?

The catalog says what is attached where; each attachment's storage is opened once in a daemon's life, when it is first asked for, and stays
usable for those who read from it when it is detached. The event loop's thread calls.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ckptstore.catalog.model import Attachment
from ckptstore.errors import CkptStoreError, InvalidInput, StaleVersion
from ckptstore.paths import MAX_PATH_BYTES, is_below, join
from ckptstore.tree_messages import AttachmentInfo, AttachStorage, FileInfo, FileListing
from ckptstore_server.node import Node
from ckptstore_server.readers.origin import FileVersion
from ckptstore_server.readers.origins.answers import Answers
from ckptstore_server.readers.origins.open_storage import folder_of, is_folder, open_storage
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

    async def look(self) -> FileInfo:
        if not self.name:  # it is there whatever the storage says
            return FileInfo(path=self.path, kind="folder", origin=self.attachment.url, modified_s=self.attachment.attached_at_s)
        return self._info(await self.answers.look(self.name))

    def look_among(self, kept: Iterable[FileVersion]) -> FileInfo | None:
        """What is there to judge by files that were read from here: enough to open one of them again. A listing would lack the others."""
        for file in kept:
            if file.path == self.path:
                return FileInfo(
                    path=file.path, kind="file", size_bytes=file.size_bytes, version=file.version, modified_s=file.modified_s,
                    sha256=file.sha256, origin=file.where, best_effort=file.best_effort,
                )  # fmt: skip
            if is_below(file.path, self.path):
                return FileInfo(path=self.path, kind="folder", origin=self.answers.storage.where(self.name))
        return None

    async def list(self, after: str, limit: int) -> FileListing:
        page = await self.answers.page(self.name, after, limit)
        fitting = [entry for entry in page.entries if len(self._path(entry.name).encode()) <= MAX_PATH_BYTES]
        skipped = page.skipped + len(page.entries) - len(fitting)
        return FileListing(entries=[self._info(entry) for entry in fitting], after=page.after, skipped=skipped)

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

    def _info(self, found: Found) -> FileInfo:
        return FileInfo(
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


class Attached:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._open: dict[Attachment, Answers] = {}
        self._opening = asyncio.Lock()

    async def over(self, path: str) -> Shown | None:
        """The attachment at or above `path`, and what the path is called there."""
        attachment = await self._node.query(self._node.catalog.attached_over, path)
        if attachment is None:
            return None
        return Shown(attachment, await self._answers(attachment), path[len(attachment.path) + 1 :])

    async def attach(self, message: AttachStorage) -> AttachmentInfo:
        """Show it, if it answers; the catalog's rules decide where."""
        if not message.read_only:
            raise InvalidInput("attached storage is only read", operation="attach", subject=message.path, hint="leave read_only=True")
        wanted = Attachment(
            path=message.path,
            url=message.url,
            refresh_s=message.refresh_s,
            credentials=message.credentials or None,
            options=json.dumps(message.options, sort_keys=True),
        )
        if is_folder(wanted):
            self._refuse_own(folder_of(wanted))
        answers = await self._node.run(self._node.upkeep_executor, self._opened, wanted)
        try:
            await answers.page("", "", 1)
            made = await self._node.query(self._node.catalog.attach, wanted)
        except CkptStoreError:
            await self._node.run(self._node.upkeep_executor, answers.close)
            raise
        if self._open.setdefault(made, answers) is not answers:
            await self._node.run(self._node.upkeep_executor, answers.close)
        self._node.board.announce()
        return self._info(made)

    async def detach(self, path: str) -> AttachmentInfo:
        """Readers keep what they have open."""
        gone = await self._node.query(self._node.catalog.detach, path)
        self._node.board.announce()
        return self._info(gone)

    async def all(self) -> list[AttachmentInfo]:
        return [self._info(attachment) for attachment in await self._node.query(self._node.catalog.attachments)]

    async def measure(self, shown: Shown, *, limit_s: float) -> tuple[int, int, bool]:
        """Files and bytes at and below it, and whether that was all that could be counted in so many seconds."""
        deadline_s = time.monotonic() + limit_s
        files, size_bytes, folders = 0, 0, [shown.name]
        if shown.name and not (found := await shown.answers.look(shown.name)).is_folder:
            return 1, found.size_bytes, True
        while folders:
            after: str | None = ""
            folder = folders.pop()
            while after is not None:
                if time.monotonic() > deadline_s:
                    return files, size_bytes, False
                page = await shown.answers.page(folder, after, 1000)
                folders += [entry.name for entry in page.entries if entry.is_folder]
                files += sum(not entry.is_folder for entry in page.entries)
                size_bytes += sum(entry.size_bytes for entry in page.entries)
                after = page.after
        return files, size_bytes, True

    def close(self) -> None:
        """Blocking, at the daemon's end."""
        for answers in self._open.values():
            answers.close()

    async def _answers(self, attachment: Attachment) -> Answers:
        async with self._opening:
            if attachment not in self._open:
                self._open[attachment] = await self._node.run(self._node.upkeep_executor, self._opened, attachment)
            return self._open[attachment]

    def _opened(self, attachment: Attachment) -> Answers:
        storage = open_storage(attachment)
        storage.gate.on_down = lambda error: self._node.remark(f"attached {attachment.path}", error)
        return Answers(storage, refresh_s=attachment.refresh_s)

    def _refuse_own(self, folder: Path) -> None:
        """The store's own folders are not to be shown, nor what holds them: its token is there, and its objects without their checks."""
        settings = self._node.settings
        own = [settings.home, *(tier.path for tier in settings.effective_tiers if tier.path is not None)]
        for place in own:
            mine, theirs = place.resolve(), folder.resolve()
            if mine.is_relative_to(theirs) or theirs.is_relative_to(mine):
                raise InvalidInput(f"{place} is the store's own", operation="attach", subject=str(folder), hint="name another folder")

    def _info(self, attachment: Attachment) -> AttachmentInfo:
        answers = self._open.get(attachment)
        failure = answers.storage.gate.failure if answers is not None else None
        return AttachmentInfo(
            path=attachment.path,
            url=attachment.url,
            read_only=attachment.read_only,
            refresh_s=attachment.refresh_s,
            credentials=attachment.credentials,
            options=json.loads(attachment.options),
            attached_at_s=attachment.attached_at_s,
            down=str(failure) if failure is not None else None,
        )
