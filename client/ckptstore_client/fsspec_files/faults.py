"""Which exception of Python's does a fault become? Programs that open files through fsspec expect OSError and ValueError, not ours."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ckptstore.errors import (
    AlreadyExists,
    ChecksumMismatch,
    CkptStoreError,
    DaemonUnavailable,
    InvalidInput,
    NotFound,
    PathConflict,
    StaleVersion,
    TierFull,
    TierUnavailable,
    Unauthorized,
    WaitTimeout,
)

#: The first that fits. OSError makes FileNotFoundError and its like of the number.
_NUMBERS: tuple[tuple[type[CkptStoreError], int], ...] = (
    (NotFound, errno.ENOENT),
    (AlreadyExists, errno.EEXIST),
    (PathConflict, errno.EPERM),
    (Unauthorized, errno.EACCES),
    (TierFull, errno.ENOSPC),
    (StaleVersion, errno.ESTALE),
    (WaitTimeout, errno.ETIMEDOUT),
    (DaemonUnavailable, errno.ECONNREFUSED),
    (ChecksumMismatch, errno.EIO),
    (TierUnavailable, errno.EIO),
)


@contextmanager
def as_python_errors(path: str) -> Iterator[None]:
    """What goes wrong inside with `path`, as OSError or ValueError, with our error as its cause."""
    try:
        yield
    except InvalidInput as error:
        raise ValueError(str(error)) from error
    except CkptStoreError as error:
        number = next((number for leaf, number in _NUMBERS if isinstance(error, leaf)), errno.EIO)
        raise OSError(number, str(error), path) from error
