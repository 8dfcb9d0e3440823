"""What type of file system holds a path, and is it one that SQLite's locks and shared memory can trust?

WAL needs locks and shared memory that all processes on one kernel see (https://www.sqlite.org/wal.html, "does not work over a network
filesystem"). The kernel's list of mounts tells the type of the file system that holds a path.
"""

from __future__ import annotations

import re
from pathlib import Path

from ckptstore.errors import ConfigInvalid

MOUNTINFO = Path("/proc/self/mountinfo")
#: Types whose files another machine, or a process in user space, may change or lock differently.
NETWORK_TYPES = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "glusterfs", "beegfs", "gpfs", "afs", "ocfs2", "gfs2", "fuse"}
)


def _unescape(text: str) -> str:
    """Mount points in mountinfo have blanks and backslashes as octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)


def filesystem_type(path: Path, mountinfo: str) -> str:
    """The type of the file system that holds `path`; "unknown" if no mount point is above it."""
    best, found = -1, "unknown"
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        mount_point = Path(_unescape(left.split()[4]))
        # Of two mounts at one place the later covers the earlier.
        if path.is_relative_to(mount_point) and len(mount_point.parts) >= best:
            best, found = len(mount_point.parts), right.split()[0]
    return found


def refuse_network_filesystem(database: Path) -> None:
    """ConfigInvalid if `database` would lie on a network file system."""
    try:
        mountinfo = MOUNTINFO.read_text("utf-8", errors="replace")
    except OSError:
        return  # no procfs here: nothing can be said, and nothing is claimed
    kind = filesystem_type(database.parent.resolve(), mountinfo)
    if kind in NETWORK_TYPES or kind.startswith("fuse."):
        raise ConfigInvalid(
            f"a SQLite catalog cannot lie on a network or user-space file system ({kind})",
            operation="open catalog",
            subject=str(database),
            hint="set `home` or `catalog_url` to a local disk, or use postgresql://…",
        )
