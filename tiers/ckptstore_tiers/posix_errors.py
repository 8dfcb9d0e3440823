"""What an errno means for a tier: which of our errors it becomes, and what to do about it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ckptstore.errors import CkptStoreError, InvalidInput, NotFound, PathConflict, TierFull, TierUnavailable

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
#: A name on the way is missing, or is a file or a link where a folder should be: there is no object at that key.
ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR})
#: What "this file system cannot do that" looks like, depending on the file system.
UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENOTTY})

_LOOKUPS = frozenset({"open", "stat", "read", "get document"})
_PUTS = frozenset({"put", "put document"})

_HINTS = {
    errno.ENOSPC: "free some space, or add a `capacity` below the device's size",
    errno.EDQUOT: "raise the quota, or add a `capacity` below it",
    errno.EROFS: "the file system is read-only: look for disk errors in the kernel's log",
    errno.EIO: "the device reports an error: look in the kernel's log",
    errno.EACCES: "the daemon's user may not do this: check who owns the folder",
    errno.EPERM: "the daemon's user may not do this: check who owns the folder",
    errno.ESTALE: "the mount is stale: mount it again",
    errno.ENOTCONN: "the mount has lost its server: mount it again",
}


def from_os_error(error: OSError, *, operation: str, key: str, tier: str) -> CkptStoreError:
    """Our error for one of the kernel's; to be raised `from` it."""
    number = error.errno or 0
    leaf: type[CkptStoreError]
    if number in FULL:
        leaf = TierFull
    elif number in ABSENT and operation in _LOOKUPS:
        leaf = NotFound
    elif number in ABSENT and number != errno.ENOENT and operation in _PUTS:
        leaf = PathConflict
    elif number == errno.ENAMETOOLONG:
        leaf = InvalidInput
    else:
        leaf = TierUnavailable
    why = error.strerror or os.strerror(number)
    return leaf(why, operation=operation, subject=key, tier=tier, hint=_HINTS.get(number))


@contextmanager
def translated(operation: str, key: str, tier: str) -> Iterator[None]:
    """Raise the kernel's errors of a `with` block as ours."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, operation=operation, key=key, tier=tier) from error
