"""Which storage of others answers for a path?

The catalog says what is attached where; each attachment's storage is opened once in a daemon's life, when it is first asked for, and stays
usable for those who read from it when it is detached. The event loop's thread calls.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from ckptstore.catalog.model import Attachment
from ckptstore.errors import CkptStoreError, InvalidInput
from ckptstore.paths import ancestors
from ckptstore.tree_messages import AttachmentInfo, AttachStorage
from ckptstore_server.node import Node
from ckptstore_server.readers.origins.answers import Answers
from ckptstore_server.readers.origins.open_storage import folder_of, is_folder, open_storage
from ckptstore_server.readers.shown import Shown

#: How soon what another node attached or detached shows here.
LOOK_S = 0.4


class Attached:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._open: dict[Attachment, Answers] = {}
        self._opening = asyncio.Lock()
        self._known: dict[str, Attachment] = {}  # by path, as the catalog had them
        self._known_until_s = 0.0
        self._changes = 0  # made here

    async def over(self, path: str) -> Shown | None:
        """The attachment at or above `path`, and what the path is called there."""
        known = await self._attachments()
        attachment = next((known[place] for place in (path, *ancestors(path)) if place in known), None)
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
        self._changed()
        return self._info(made)

    async def detach(self, path: str) -> AttachmentInfo:
        """Readers keep what they have open."""
        gone = await self._node.query(self._node.catalog.detach, path)
        self._changed()
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

    async def _attachments(self) -> dict[str, Attachment]:
        """What the catalog has, at most `LOOK_S` old as to other nodes' doing: readers ask this for every path."""
        if time.monotonic() >= self._known_until_s:
            changes, now_s = self._changes, time.monotonic()
            found = {attachment.path: attachment for attachment in await self._node.query(self._node.catalog.attachments)}
            if changes != self._changes:
                return found  # it may be of before the change
            self._known, self._known_until_s = found, now_s + LOOK_S
        return self._known

    def _changed(self) -> None:
        self._changes += 1
        self._known_until_s = 0.0
        self._node.board.announce()

    async def _answers(self, attachment: Attachment) -> Answers:
        async with self._opening:
            if attachment not in self._open:
                self._open[attachment] = await self._node.run(self._node.upkeep_executor, self._opened, attachment)
            return self._open[attachment]

    def _opened(self, attachment: Attachment) -> Answers:
        storage = open_storage(attachment)
        storage.gate.on_down = lambda error: self._node.remark(f"attached {attachment.path}", error)
        return Answers.of(storage, refresh_s=attachment.refresh_s)

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
