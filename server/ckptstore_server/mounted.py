"""Is the file system of a shared tier mounted?

An unmounted mount point is an empty folder on the local disk. Taken for the tier, it would swallow every drain and hide what the tier
really holds. So the type of the file system under a shared posix tier is noted in the home when the tier is first used; while another
type is found there, the tier is unavailable, and comes back by itself when the mount does. A node's own disk is not watched: replacing
it by another one, empty and of another type, is what operators do.
"""

from __future__ import annotations

from pathlib import Path

from ckptstore.config import TierSettings
from ckptstore.errors import TierUnavailable
from ckptstore.mounts import MOUNTINFO, filesystem_type


def check_mounted(settings: TierSettings, home: Path) -> None:
    """TierUnavailable if the tier's folder lies on another type of file system than when it was first used."""
    if settings.path is None or not settings.is_shared:
        return
    found = filesystem_type(settings.path.resolve(), MOUNTINFO.read_text("utf-8", errors="replace"))
    note = home / "mounts" / settings.name
    if not note.exists():
        note.parent.mkdir(mode=0o700, exist_ok=True)
        note.write_text(f"{found}\n", "ascii")
        return
    first = note.read_text("ascii").strip()
    if found != first:
        raise TierUnavailable(
            f"its folder was on a file system of type {first}, now it is on {found}",
            operation="open tier",
            subject=str(settings.path),
            tier=settings.name,
            hint=f"mount the file system; if it was moved on purpose, delete {note}",
        )
