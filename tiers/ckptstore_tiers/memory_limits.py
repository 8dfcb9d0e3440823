"""How much more host memory this process may use before somebody gets killed for it.

A memfd has no ENOSPC: too much of it wakes the OOM killer. So the room is asked for before a segment is promised: the least of
MemAvailable and of `memory.max - memory.current` of every cgroup above this process, version 2 and version 1 alike. File pages that
the kernel would give up first (`inactive_file`) count as room, as they do in MemAvailable. A reserve stays untouched for everybody else.

Stateless and thread-safe: every question reads the kernel's files anew, about 0.2 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckptstore.errors import CkptStoreError

#: What is left to everybody else: a twentieth of each bound, but not more than this, or a terabyte node would waste 50 GB.
MAX_RESERVE_BYTES = 1 << 30
_RESERVE_FRACTION = 20


@dataclass(frozen=True)
class Room:
    """`size_bytes` may be used; `bound` names what bounds it, for the error's hint."""

    size_bytes: int
    bound: str


@dataclass(frozen=True)
class Mount:
    """A mounted cgroup hierarchy: version 2, or the memory controller of version 1."""

    folder: Path
    root: str  # which cgroup the mount point shows; not "/" in a container without a cgroup namespace
    version: int


def cgroup_paths(proc: Path, pid: int | str = "self") -> dict[str, str]:
    """Controller → path of the process's cgroup; the one of version 2 has the empty name. Raises OSError."""
    paths = {}
    for line in (proc / str(pid) / "cgroup").read_text("utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


class HostMemory:
    """The host's and the cgroups' bounds; `proc` is another folder in tests."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    def room(self) -> Room:
        """How much more may be used now; never negative."""
        rooms = [self._host_room(), *self._cgroup_rooms()]
        return min(rooms, key=lambda room: room.size_bytes)

    def _host_room(self) -> Room:
        try:
            lines = (self._proc / "meminfo").read_text("ascii").splitlines()
        except OSError as error:
            raise CkptStoreError(str(error), operation="read free memory", subject=str(self._proc), tier="memory") from error
        fields = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        return _less_reserve(fields["MemAvailable"], fields["MemTotal"], "the machine's free memory (MemAvailable)")

    def _cgroup_rooms(self) -> list[Room]:
        try:
            paths = cgroup_paths(self._proc)
            mounts = self._mounts()
        except OSError:
            return []  # no cgroups on this kernel: MemAvailable is all there is
        rooms = []
        for mount in mounts:
            path = paths.get("" if mount.version == 2 else "memory")
            if path is not None:
                found = (_cgroup_room(folder, mount.version) for folder in _upwards(mount, path))
                rooms += [room for room in found if room is not None]
        return rooms

    def _mounts(self) -> list[Mount]:
        mounts = []
        for line in (self._proc / "self" / "mountinfo").read_text("utf-8").splitlines():
            before, _, after = line.partition(" - ")
            kind, _, options = after.split(" ", 2)
            _, _, _, root, folder, *_ = before.split(" ")
            if kind == "cgroup2":
                mounts.append(Mount(Path(_unescape(folder)), root, 2))
            elif kind == "cgroup" and "memory" in options.split(" ")[-1].split(","):
                mounts.append(Mount(Path(_unescape(folder)), root, 1))
        return mounts


def _unescape(text: str) -> str:
    """mountinfo writes spaces and the like in octal."""
    return text.encode("latin-1", "replace").decode("unicode_escape") if "\\" in text else text


def _upwards(mount: Mount, path: str) -> list[Path]:
    """The folders of the cgroup at `path` and of all above it that this mount shows."""
    inside = path[len(mount.root) :] if mount.root != "/" and path.startswith(mount.root) else path
    folder = mount.folder.joinpath(*(part for part in inside.split("/") if part not in ("", "..")))
    return [folder, *(above for above in folder.parents if above.is_relative_to(mount.folder))]


def _cgroup_room(folder: Path, version: int) -> Room | None:
    """None where this cgroup sets no limit, or has no memory controller."""
    limit_name, used_name = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    try:
        limit = (folder / limit_name).read_text("ascii").strip()
        if limit == "max":
            return None
        used = int((folder / used_name).read_text("ascii"))
        stat = (folder / "memory.stat").read_text("ascii")
    except OSError:
        return None
    reclaimable = "inactive_file" if version == 2 else "total_inactive_file"
    cached = next((int(line.split()[1]) for line in stat.splitlines() if line.split()[0] == reclaimable), 0)
    return _less_reserve(int(limit) - used + cached, int(limit), f"the memory limit of cgroup {folder}")


def _less_reserve(free_bytes: int, total_bytes: int, bound: str) -> Room:
    reserve = min(total_bytes // _RESERVE_FRACTION, MAX_RESERVE_BYTES)
    return Room(max(0, free_bytes - reserve), bound)
