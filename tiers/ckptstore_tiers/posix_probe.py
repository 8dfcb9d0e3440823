"""What can this mount do? Asked once, when a posix tier is opened, with a few small files in its folder for unfinished ones.

File systems that call themselves POSIX differ where it matters: tmpfs and some FUSE mounts have no O_DIRECT, MooseFS no
fallocate, GlusterFS shows a moment of ENOENT while one file is renamed over another, and on a SeaweedFS mount two of eight
threads may win an exclusive create. Objects need none of that, since their names are unique and never replaced. Documents
need one exclusive primitive; a mount that has none is refused by name.

What a race did not show in a few rounds may still exist: the probe lowers expectations, it proves nothing. Where it is known to
exist all the same, the file system is refused by name, before anything is written there. The probe takes a few milliseconds on a
local disk. A full or read-only file system is no reason to refuse: then the answers are the usual ones.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ckptstore.errors import ConfigInvalid
from ckptstore.failpoints import declare
from ckptstore.mounts import MOUNTINFO, filesystem_type
from ckptstore_tiers import disk_calls
from ckptstore_tiers.posix_errors import UNSUPPORTED

PROBE = declare("posix.probe")

#: What every probe's token begins with.
TOKEN = "probe-"
#: How old an unfinished file must be to count as left by a process that died, where that may be another node's.
LEFTOVER_S = 600.0
RACERS = 8
RACE_ROUNDS = 4
RENAME_ROUNDS = 40

#: How a finished file gets a name that nothing else has: in order of preference.
PUBLISHERS: dict[str, Callable[..., None]] = {"renameat2": disk_calls.rename_new, "link": disk_calls.link}


#: File systems that break a tier's promises in ways that no short probe shows, by their type in /proc/self/mountinfo.
REFUSED = {
    "fuse.seaweedfs": "a SeaweedFS mount: of eight that create one document exclusively two may win, and operations on it may hang"
}


def refuse_file_system(root: Path, *, tier: str, mountinfo: Path = MOUNTINFO) -> None:
    """ConfigInvalid if `root` lies, or would lie, on a file system that is known not to keep what a tier promises."""
    try:
        kind = filesystem_type(root.resolve(), mountinfo.read_text("utf-8", errors="replace"))
    except OSError:
        return  # no procfs here: nothing can be said
    if kind in REFUSED:
        raise ConfigInvalid(
            f"the folder is on {REFUSED[kind]}",
            operation="open tier",
            subject=str(root),
            tier=tier,
            hint="reach it through its S3 gateway, as a tier of kind object",
        )


def is_left_over(entry: os.DirEntry[str], now_s: float) -> bool:
    """Whether nobody has written into it for so long that nobody will; `now_s` by the file system's own clock."""
    return entry.stat(follow_symlinks=False).st_mtime < now_s - LEFTOVER_S


@dataclass(frozen=True)
class MountAbilities:
    direct: bool = True
    preallocate: bool = True
    publisher: str = "renameat2"
    replace_is_atomic: bool = True
    details: dict[str, str] = field(default_factory=dict)


def probe_mount(dir_fd: int, *, token: str, tier: str, location: str) -> MountAbilities:
    """Try things out in the folder `dir_fd`, under names that begin with `token`; leave nothing behind.

    Raises ConfigInvalid if no exclusive create works, OSError if the mount does not answer at all.
    """
    probe = _Probe(dir_fd, token)
    try:
        direct = probe.direct()
        preallocate = probe.preallocates()
        probe.clean_up_after_others()
        exclusive = {name: probe.exclusive(name) for name in PUBLISHERS}
        create_wins = probe.create_is_exclusive()
        atomic = probe.replace_is_atomic()
        locks = probe.locks()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        return MountAbilities(details={"probe": f"not done: {error.strerror}"})
    finally:
        probe.clean()
    publisher = next((name for name, works in exclusive.items() if works), None)
    if publisher is None:
        raise ConfigInvalid(
            "the mount has no exclusive create: with renameat2(RENAME_NOREPLACE) and with link, several writers win",
            operation="open tier",
            subject=location,
            tier=tier,
            hint="use another file system for this tier, or reach this one through its S3 gateway",
        )
    details = {
        "o_direct": "yes" if direct else "no: files go through the page cache",
        "fallocate": "yes" if preallocate else "no",
        "publish": publisher,
        "o_excl": "one winner" if create_wins else "several winners: not used",
        "rename over": "atomic" if atomic else "not atomic: a document that is replaced is looked for twice",
        "flock": "yes" if locks else "no",
    }
    return MountAbilities(direct, preallocate, publisher, atomic, details)


class _Probe:
    def __init__(self, dir_fd: int, token: str) -> None:
        self._dir_fd = dir_fd
        self._token = token
        self._made: set[str] = set()

    def _name(self, suffix: str) -> str:
        name = f"{self._token}.{suffix}"
        self._made.add(name)
        return name

    def _create(self, suffix: str, flags: int = 0) -> int:
        name = self._name(suffix)
        return disk_calls.open_file(PROBE, name, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, dir_fd=self._dir_fd)

    def direct(self) -> bool:
        """Whether a page can be written and read with O_DIRECT."""
        page = mmap.mmap(-1, mmap.PAGESIZE)
        try:
            fd = self._create("direct", os.O_DIRECT)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return False
            raise
        try:
            view = memoryview(page)
            wrote = disk_calls.pwrite(PROBE, fd, view, 0)
            return wrote == len(view) and disk_calls.preadv(PROBE, fd, view, 0) == len(view)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return False
            raise
        finally:
            os.close(fd)

    def preallocates(self) -> bool:
        fd = self._create("allocate")
        try:
            disk_calls.fallocate(PROBE, fd, mmap.PAGESIZE)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return False
            raise
        finally:
            os.close(fd)
        return True

    def exclusive(self, publisher: str) -> bool:
        """Whether exactly one of several threads can give its own file a certain name, each time."""

        def attempt(target: str, racer: int) -> bool:
            try:
                PUBLISHERS[publisher](PROBE, f"{target}.{racer}", target, dir_fd=self._dir_fd, new_dir_fd=self._dir_fd)
            except FileExistsError:
                return False
            return True

        def prepare(target: str) -> None:
            for racer in range(RACERS):
                os.close(self._create(f"{target.removeprefix(self._token + '.')}.{racer}"))

        return self._one_winner(publisher, prepare, attempt)

    def create_is_exclusive(self) -> bool:
        def attempt(target: str, racer: int) -> bool:
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                os.close(disk_calls.open_file(PROBE, target, flags, dir_fd=self._dir_fd))
            except FileExistsError:
                return False
            return True

        return self._one_winner("create", lambda target: None, attempt)

    def _one_winner(
        self, suffix: str, prepare: Callable[[str], None], attempt: Callable[[str, int], bool]
    ) -> bool:
        with ThreadPoolExecutor(RACERS) as racers:
            for turn in range(RACE_ROUNDS):
                target = self._name(f"{suffix}.{turn}")
                prepare(target)
                gate = threading.Barrier(RACERS)

                def race(racer: int, target: str = target, gate: threading.Barrier = gate) -> bool:
                    gate.wait(timeout=60)
                    return attempt(target, racer)

                try:
                    wins = list(racers.map(race, range(RACERS)))
                except OSError as error:
                    if error.errno in UNSUPPORTED or error.errno == errno.EXDEV:
                        return False
                    raise
                if wins.count(True) != 1:
                    return False
        return True

    def replace_is_atomic(self) -> bool:
        """Whether a file stays reachable under its name while other files are renamed over it."""
        target = self._name("target")
        os.close(self._create("target"))
        done, missing = threading.Event(), threading.Event()

        def look() -> None:
            while not done.is_set():
                try:
                    os.close(disk_calls.open_file(PROBE, target, os.O_RDONLY, dir_fd=self._dir_fd))
                except OSError:
                    missing.set()
                    return

        watcher = threading.Thread(target=look, name="ckptstore-probe")
        watcher.start()
        try:
            for _ in range(RENAME_ROUNDS):
                if missing.is_set():
                    break
                os.close(self._create("source"))
                disk_calls.rename(PROBE, self._name("source"), target, dir_fd=self._dir_fd, new_dir_fd=self._dir_fd)
        finally:
            done.set()
            watcher.join()
        return not missing.is_set()

    def locks(self) -> bool:
        """Whether flock keeps a second descriptor out."""
        first = self._create("lock")
        try:
            second = disk_calls.open_file(PROBE, self._name("lock"), os.O_RDWR, dir_fd=self._dir_fd)
            try:
                fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:
                return False
            finally:
                os.close(second)
            return False
        finally:
            os.close(first)

    def clean_up_after_others(self) -> None:
        """Remove what a probe left that was killed. Its age is told by the file system's own clock, which all its clients share."""
        now_s = os.stat(self._name("allocate"), dir_fd=self._dir_fd).st_mtime
        with os.scandir(self._dir_fd) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.name.startswith(TOKEN) and is_left_over(entry, now_s):
                        disk_calls.unlink(PROBE, entry.name, dir_fd=self._dir_fd)

    def clean(self) -> None:
        for name in self._made:
            with contextlib.suppress(OSError):
                disk_calls.unlink(PROBE, name, dir_fd=self._dir_fd)
