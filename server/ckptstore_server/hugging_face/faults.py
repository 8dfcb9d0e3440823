"""What the hub's clients are told when something is not there: they go by the header `X-Error-Code`, not by the status alone.

Without `EntryNotFound` a client that asks for an optional file takes the whole hub for unreachable; with `X-Repo-Commit` beside it, it
remembers that the file is not in this commit and does not ask again.
"""

from __future__ import annotations

from fastapi.responses import JSONResponse

from ckptstore.errors import CkptStoreError, NotFound, Unauthorized


class RepoNotFound(NotFound):
    """No model of that name, or none that this caller may know of."""


class RevisionNotFound(NotFound):
    """The model has no such version, or not any more."""


class EntryNotFound(NotFound):
    """The version has no such file."""


def error_answer(error: CkptStoreError, commit: str | None = None, *, status: int) -> JSONResponse:
    headers = {"x-error-message": _header_text(error.why)}
    if isinstance(error, RepoNotFound | RevisionNotFound | EntryNotFound):
        headers["x-error-code"] = type(error).__name__
    if isinstance(error, Unauthorized):
        headers["x-error-message"] = "Invalid credentials in Authorization header"
    if commit is not None:
        headers["x-repo-commit"] = commit
    return JSONResponse({"error": str(error)}, status_code=status, headers=headers)


def _header_text(text: str) -> str:
    """One line of printable ASCII: it may quote what somebody sent."""
    return "".join(character if " " <= character <= "~" else "?" for character in text)[:500]
