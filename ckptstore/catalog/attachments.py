"""Which storage of others is shown where?

An attachment is configuration that is kept where all nodes see it: nothing of what lies there is recorded. Its path shows up in the
namespace as a folder, and nothing of ours can be at it or below it, nor can it be above anything that is: attaching and publishing
exclude each other under the namespace's lock. A rebuild finds them in a document that the tiers keep (`attachments_record`).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from ckptstore import paths
from ckptstore.catalog.core import Core, lock_namespace
from ckptstore.catalog.entries import add_entry, attached_over, refuse_taken_path, remove_entries
from ckptstore.catalog.model import Attachment
from ckptstore.catalog.schema import attachments, counters, now_s
from ckptstore.errors import AlreadyExists, NotFound


class Attachments(Core):
    def attach(self, wanted: Attachment) -> Attachment:
        """Show `wanted.url` at `wanted.path`. What is attached there in the same way already stays as it is.

        AlreadyExists if the path is attached in another way, or something is published at it; PathConflict if anything is below it, or
        above it something that is published or attached.
        """
        paths.check_path(wanted.path, operation="attach")
        return self._db.write("attach", lambda tx: self._attach(tx, wanted), wanted.path)

    def detach(self, path: str) -> Attachment:
        """Show it no longer. NotFound if nothing is attached at this very path."""
        path = paths.check_path(path, operation="detach")
        return self._db.write("detach", lambda tx: self._detach(tx, path), path)

    def attachments(self) -> list[Attachment]:
        """All, in the order of their paths."""
        rows = self._db.read("list attachments", lambda tx: tx.execute(select(attachments).order_by(attachments.c.path)).all())
        return [_attachment(row) for row in rows]

    def attachments_now(self) -> tuple[int, list[Attachment]]:
        """All of them, and the namespace's number at this moment."""

        def work(tx: Connection) -> tuple[int, list[Attachment]]:
            sequence = tx.execute(select(counters.c.value).where(counters.c.name == "sequence")).scalar_one()
            return int(sequence), [_attachment(row) for row in tx.execute(select(attachments).order_by(attachments.c.path))]

        return self._db.read("list attachments", work)

    def attached_over(self, path: str) -> Attachment | None:
        """The attachment at or above a path."""
        row = self._db.read("look for an attachment", lambda tx: attached_over(tx, path), path)
        return _attachment(row) if row is not None else None

    def _attach(self, tx: Connection, wanted: Attachment) -> Attachment:
        lock_namespace(tx)
        row = tx.execute(select(attachments).where(attachments.c.path == wanted.path)).first()
        if row is not None:
            there = _attachment(row)
            if _way(there) == _way(wanted):
                return there
            why = f"it is attached already, from {there.url}, in another way"
            raise AlreadyExists(why, operation="attach", subject=wanted.path, hint=f"detach {wanted.path} first")
        there_already = refuse_taken_path(tx, wanted.path, False, "attach")
        add_entry(tx, wanted.path, None, there_already)
        tx.execute(insert(attachments).values(path=wanted.path, attached_at_s=now_s(), **_way(wanted)))
        return _attachment(tx.execute(select(attachments).where(attachments.c.path == wanted.path)).one())

    def _detach(self, tx: Connection, path: str) -> Attachment:
        lock_namespace(tx)
        row = tx.execute(select(attachments).where(attachments.c.path == path)).first()
        if row is None:
            over = attached_over(tx, path)
            hint = f"{over.path} is attached: detach that" if over is not None else None
            raise NotFound("nothing is attached there", operation="detach", subject=path, hint=hint)
        tx.execute(delete(attachments).where(attachments.c.path == path))
        remove_entries(tx, [path])
        return _attachment(row)


def _way(attachment: Attachment) -> dict[str, Any]:
    """What of it the caller decides."""
    names = ("url", "refresh_s", "read_only", "credentials", "options")
    return {name: getattr(attachment, name) for name in names}


def _attachment(row: Row[Any]) -> Attachment:
    return Attachment(
        path=row.path,
        url=row.url,
        refresh_s=row.refresh_s,
        read_only=bool(row.read_only),
        credentials=row.credentials,
        options=row.options,
        attached_at_s=row.attached_at_s,
    )
