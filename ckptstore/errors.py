"""What can go wrong, by outcome: one root, one leaf per outcome, one table for what follows from each.

Every instance says what was tried (`operation`), on what (`subject`), where (`tier`), why, and what to do about it (`hint`).
`code`, `retryable`, `http_status` and `exit_code` are class attributes, so the leaves below *are* the table: the daemon turns an
error into a response with `to_wire`, the client turns it back into the same class with `from_wire`, and the command line exits
with `exit_code`.

Foreign exceptions are translated where the foreign library is called, with `raise … from error`.
"""

from __future__ import annotations

from typing import Any, ClassVar


class CkptStoreError(Exception):
    """The root. Raised itself only for faults that no leaf describes (a bug in the daemon, say)."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        why: str,
        *,
        operation: str | None = None,
        subject: str | None = None,
        tier: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.why = why
        self.operation = operation
        self.subject = subject
        self.tier = tier
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        """One line: what, where, why, then the hint."""
        what = " ".join(part for part in (self.operation, self.subject) if part)
        where = f" (tier {self.tier})" if self.tier else ""
        head = f"{what}{where}: " if what or where else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{head}{self.why}{hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (from_wire, (self.to_wire(),))

    def to_wire(self) -> dict[str, Any]:
        """The error as JSON: the body of an HTTP error response."""
        fields = {"operation": self.operation, "subject": self.subject, "tier": self.tier, "hint": self.hint}
        return {"error": self.code, "why": self.why} | {k: v for k, v in fields.items() if v is not None}


class InvalidInput(CkptStoreError):
    """A path, header, size, name or document that breaks a rule. Nothing was changed."""

    code, http_status, exit_code = "invalid_input", 400, 2


class NotStorable(InvalidInput):
    """A leaf of the state has a type that cannot be stored; `subject` is its place in the state."""

    code, http_status = "not_storable", 422


class ConfigInvalid(InvalidInput):
    """The configuration has an unknown key, or a value out of its range."""

    code = "config_invalid"


class NotFound(CkptStoreError):
    """Nothing is published at that path, or no such attempt, object or segment is known."""

    code, http_status, exit_code = "not_found", 404, 3


class AlreadyExists(CkptStoreError):
    """Something is published at that path, and `replace` was not asked for."""

    code, http_status, exit_code = "already_exists", 409, 4


class PathConflict(CkptStoreError):
    """A file where a folder is needed, a folder where a file is, or a path inside a published, closed folder."""

    code, http_status, exit_code = "path_conflict", 409, 4


class Unauthorized(CkptStoreError):
    """No token, a wrong token, or a peer that may not use this socket."""

    code, http_status, exit_code = "unauthorized", 401, 5


class Busy(CkptStoreError):
    """No slot of the memory tier is free, or a queue is full. Later it may be."""

    code, retryable, http_status, exit_code = "busy", True, 429, 6


class AttemptAborted(CkptStoreError):
    """This try at saving a checkpoint has ended without one, for all of its ranks. The next may succeed."""

    code, http_status, exit_code = "attempt_aborted", 410, 7


class ChecksumMismatch(CkptStoreError):
    """Stored bytes differ from what was saved, and no good replica is left."""

    code, http_status, exit_code = "checksum_mismatch", 500, 8


class TierFull(CkptStoreError):
    """The tier's capacity, or the device's, is used up."""

    code, retryable, http_status, exit_code = "tier_full", True, 507, 9


class TierUnavailable(CkptStoreError):
    """The tier does not answer, or its device fails (EIO, a read-only file system, 503, a reset connection)."""

    code, retryable, http_status, exit_code = "tier_unavailable", True, 503, 10


class CatalogUnavailable(CkptStoreError):
    """The catalog's database is locked, full, or does not answer."""

    code, retryable, http_status, exit_code = "catalog_unavailable", True, 503, 11


class WaitTimeout(CkptStoreError):
    """What was waited for did not come in time. It may still come: the wait changed nothing."""

    code, retryable, http_status, exit_code = "wait_timeout", True, 504, 12


class DaemonUnavailable(CkptStoreError):
    """No daemon answers, it could not be started, or it went away in the middle."""

    code, retryable, http_status, exit_code = "daemon_unavailable", True, 503, 13


class AlreadyRunning(CkptStoreError):
    """Another daemon serves this home."""

    code, http_status, exit_code = "already_running", 409, 14


class WrongStore(CkptStoreError):
    """A tier's root belongs to another store than the catalog, or is not empty while the catalog is."""

    code, http_status, exit_code = "wrong_store", 409, 15


class StaleVersion(CkptStoreError):
    """The file is another version now, and the bytes of the one that was opened cannot be had any more: open it again."""

    code, http_status, exit_code = "stale_version", 412, 16


class VersionMismatch(CkptStoreError):
    """Client and daemon speak different versions of what they say to each other. Nothing was asked for yet."""

    code, http_status, exit_code = "version_mismatch", 426, 17


def _leaves(root: type[CkptStoreError]) -> list[type[CkptStoreError]]:
    found = [root]
    for child in root.__subclasses__():
        found += _leaves(child)
    return found


#: code → class: the one table that maps errors on the wire back to classes.
BY_CODE: dict[str, type[CkptStoreError]] = {leaf.code: leaf for leaf in _leaves(CkptStoreError)}


def from_wire(document: object) -> CkptStoreError:
    """The error that `to_wire` wrote. A document that is none of ours becomes the root error that quotes it."""
    if not isinstance(document, dict) or not isinstance(document.get("why"), str):
        return CkptStoreError(f"unreadable error response: {str(document)[:200]}")
    leaf = BY_CODE.get(str(document.get("error")), CkptStoreError)
    fields = {k: str(document[k]) for k in ("operation", "subject", "tier", "hint") if document.get(k) is not None}
    return leaf(document["why"], **fields)
