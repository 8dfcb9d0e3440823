"""Where the daemon's unix sockets are, and who may stand behind such a path.

A socket's path has at most 107 bytes. A home whose sockets would not fit has them in a short folder of its own under /tmp, named after
the home's owner and its real path, so that every process that knows the home finds it, whatever its environment. ($XDG_RUNTIME_DIR
would not do: it differs between a login shell, a batch job and a service, and it is deleted at logout, which a daemon outlives.)

Everybody may write to /tmp: the folder must be a real one, of the home's owner, and closed to all others, or nobody listens or
connects there. A socket file that nobody answers is replaced; one that is answered never is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import socket
import stat
from pathlib import Path

from ckptstore.errors import AlreadyRunning, ConfigInvalid, Unauthorized

#: sockaddr_un.sun_path has 108 bytes, the last of which is NUL.
MAX_SOCKET_PATH_BYTES = 107
_SHORT_ROOT = Path("/tmp")
#: ckptstore-<user id of the home's owner>-<hash of the home's path>
_SHORT_NAME = re.compile(r"ckptstore-\d+-[0-9a-f]{16}")


def socket_path(home: Path, name: str) -> Path:
    """The path of this home's socket `name`. Unauthorized if the short folder exists and is somebody else's. Makes nothing."""
    natural = home / name
    if len(os.fsencode(natural)) <= MAX_SOCKET_PATH_BYTES:
        return natural
    digest = hashlib.sha256(os.fsencode(os.path.realpath(home))).hexdigest()[:16]
    folder = _SHORT_ROOT / f"ckptstore-{_owner(home)}-{digest}"
    with contextlib.suppress(FileNotFoundError):
        _check_folder(folder)
    return folder / name


def claim(path: Path) -> None:
    """Make `path` free to listen on: make its folder, remove a socket file that nobody answers.

    AlreadyRunning if somebody answers; ConfigInvalid if something else than a socket is there. Call it under the home's lock.
    """
    if path.parent.parent == _SHORT_ROOT and _SHORT_NAME.fullmatch(path.parent.name):
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(mode=0o700)
        _check_folder(path.parent)
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConfigInvalid("something that is no socket is in its place", operation="listen", subject=str(path))
    if is_answered(path):
        raise AlreadyRunning("another daemon listens there", operation="listen", subject=str(path))
    path.unlink(missing_ok=True)


def is_answered(path: Path) -> bool:
    """Whether some process listens on this socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # Any other answer than these (EAGAIN, say: its backlog is full) comes from somebody who listens.
        return probe.connect_ex(os.fspath(path)) not in (errno.ECONNREFUSED, errno.ENOENT)


def listen(path: Path, *, backlog: int = 256) -> socket.socket:
    """A listening socket at `path`, mode 0600 from its first moment. Errors as `claim`."""
    claim(path)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux takes the file's mode from the unbound socket, so there is no moment at which others could connect.
        os.fchmod(server.fileno(), 0o600)
        server.bind(os.fspath(path))
        server.listen(backlog)
    except OSError as error:
        server.close()
        raise ConfigInvalid(str(error), operation="listen", subject=str(path), hint="is the home writable?") from error
    return server


def _owner(home: Path) -> int:
    """The home's owner; before the home is made, this user, who will make it."""
    try:
        return home.stat().st_uid
    except OSError:
        return os.getuid()


def _check_folder(folder: Path) -> None:
    """Raise Unauthorized unless only the user in its name, or root, may enter it; FileNotFoundError if there is none."""
    owner = int(folder.name.split("-")[1])
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (owner, 0) or stat.S_IMODE(found.st_mode) & 0o077:
        raise Unauthorized(
            f"the folder for sockets is not a folder of user {owner} alone",
            operation="find the socket",
            subject=str(folder),
            hint="remove it, or choose a home with a shorter path",
        )
