"""What of a document did not fit its model? One line for people: where, and why."""

from __future__ import annotations

from pydantic import ValidationError


def first_faults(error: ValidationError, whole: str, *, most: int = 1) -> str:
    """`field.inner: why; …`, of the first things that are wrong; `whole` names the document where it is wrong as a whole."""
    found = error.errors(include_url=False)[:most]
    return "; ".join(f"{'.'.join(str(part) for part in fault['loc']) or whole}: {fault['msg']}" for fault in found)
