"""How does a mount begin and end for its user? `mount` returns when it is served, `umount` when it is gone.

The holder becomes a process of its own, in its own session, so that the mount outlives the terminal; in the foreground it is this process.
Its log, and the serving process's, is `mount.log` in the home.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from ckptstore.errors import AlreadyExists, CkptStoreError, DaemonUnavailable, InvalidInput, NotFound, from_wire
from ckptstore_client.mount import device, holder
from ckptstore_client.mount.task import MountOptions

SERVED_TIMEOUT_S = 60.0
GONE_TIMEOUT_S = 30.0


def mount(options: MountOptions, *, log: Path) -> int:
    """Mount, and return once it is served: the holder's process id. The errors of mounting."""
    _check_free(options)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ckptstore_client.mount.holder", json.dumps(asdict(options)), str(writer)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[writer],
            start_new_session=True,
        )
    os.close(writer)
    with open(reader, "rb") as answers:
        answer = json.loads(answers.readline() or b"null")
    if answer is None:
        process.wait()
        if device.device_of(Path(options.mountpoint)) is not None:
            device.unmount(Path(options.mountpoint), lazy=True)
        hint = f"see {log}"
        raise DaemonUnavailable("the mount ended before it was served", operation="mount", subject=options.mountpoint, hint=hint)
    if "serving" not in answer:
        process.wait()
        raise from_wire(answer)
    _look(options.mountpoint)
    process.returncode = 0  # it outlives us: without this, its Popen warns when it is collected
    return process.pid


def serve_in_foreground(options: MountOptions) -> int:
    """Mount, and stay until it is unmounted; the exit code."""
    _check_free(options)
    return holder.run(options, None)


def umount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Take a mount of ours away; at return the kernel knows it no more."""
    place = Path(os.path.realpath(mountpoint.parent)) / mountpoint.name
    if device.device_of(place) is None:
        raise NotFound("no mount of ckptstore is there", operation="umount", subject=str(mountpoint))
    device.unmount(place, lazy=lazy)


def _check_free(options: MountOptions) -> None:
    """What a mount left that nobody serves any more is taken away; one that is served is not."""
    place = Path(options.mountpoint)
    if device.device_of(place) is not None and not _is_served(place):
        device.unmount(place, lazy=True)
    if device.device_of(place) is not None:
        hint = "`ckptstore umount` it first"
        raise AlreadyExists("a tree is mounted there already", operation="mount", subject=options.mountpoint, hint=hint)
    if not options.root.startswith("/"):
        raise InvalidInput("the path is relative", operation="mount", subject=options.root)


def _is_served(place: Path) -> bool:
    try:
        place.stat()
    except OSError as error:
        return error.errno not in (errno.ENOTCONN, errno.ECONNABORTED)
    return True


def _look(mountpoint: str) -> None:
    """The first request of all: INIT is answered when this returns."""
    try:
        Path(mountpoint).stat()
    except OSError as error:
        raise CkptStoreError(f"it does not answer: {error.strerror}", operation="mount", subject=mountpoint) from error
