"""Would the daemon die together with its client's job?

A batch system or container runtime ends a job by killing every process in the job's cgroup. A daemon that a trainer started lives in
there too, and takes the snapshots in its memory with it. `in_job_cgroup` compares the two processes' cgroups as the kernel shows them,
and recognises what belongs to a job: a Slurm job, a Kubernetes pod, a container, a systemd session or unit. docs/outside-the-job.md
shows how to start the daemon outside. Stateless.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ckptstore_tiers.memory_limits import cgroup_paths

_GUIDE = "docs/outside-the-job.md"
#: The inode of the cgroup namespace that the machine starts with (PROC_CGROUP_INIT_INO in the kernel's source).
_FIRST_CGROUP_NAMESPACE = 0xEFFFFFFB

#: What ends together: a name of one level of a cgroup path → what it is, and how to be outside of it.
_JOBS: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (re.compile(r"job_\d+"), "Slurm job", "start the daemon from the Slurm prolog, or as a system service"),
    (re.compile(r"(kubepods.*-)?pod[0-9a-f][0-9a-f_-]{15,}(\.slice)?"), "Kubernetes pod", "run the daemon as a DaemonSet"),
    (
        re.compile(r"((docker|libpod|cri-containerd|crio)-)?[0-9a-f]{64}(\.scope)?"),
        "container",
        "run the daemon in a container of its own, or on the host",
    ),
    (
        re.compile(r"(?!init\.scope|slurmstepd\.scope|slurmd\.service|user@\d+\.service).+\.(scope|service)"),
        "systemd unit",
        "start the daemon as a service of its own, for example with `systemd-run --user`",
    ),
)


@dataclass(frozen=True)
class JobCgroup:
    """`shared`: the end of the client's job would end the daemon. `cgroup` and `kind` say which job, `advice` what to do."""

    shared: bool
    cgroup: str = ""
    kind: str = ""
    advice: str = ""


def in_job_cgroup(peer_pid: int, *, proc: Path = Path("/proc")) -> JobCgroup:
    """Whether this process and `peer_pid` are in one job's cgroup.

    A process that cannot be seen shares none: SO_PEERCRED says pid 0 for a client in another container.
    """
    try:
        own, peer = cgroup_paths(proc), cgroup_paths(proc, peer_pid)
    except OSError:
        return JobCgroup(False)
    for controller in ("", "memory", "name=systemd"):
        found = _common_job(own.get(controller, "/"), peer.get(controller, "/"))
        if found is not None:
            return found
    if _in_same_container(proc, peer_pid):
        return JobCgroup(True, own.get("", "/"), "container", f"run the daemon in a container of its own, or on the host; see {_GUIDE}")
    return JobCgroup(False, own.get("", "/"))


def _common_job(own: str, peer: str) -> JobCgroup | None:
    """The outermost job that both cgroup paths lie in."""
    path = ""
    for mine, theirs in zip(own.strip("/").split("/"), peer.strip("/").split("/"), strict=False):
        if mine != theirs:
            return None
        path += f"/{mine}"
        for pattern, kind, advice in _JOBS:
            if pattern.fullmatch(mine):
                return JobCgroup(True, path, kind, f"{advice}; see {_GUIDE}")
    return None


def _in_same_container(proc: Path, peer_pid: int) -> bool:
    """In a container with a cgroup namespace every path is `/`; that both share a namespace other than the first tells it."""
    try:
        own, peer = (proc / "self/ns/cgroup").stat(), (proc / str(peer_pid) / "ns/cgroup").stat()
    except OSError:
        return False
    return os.path.samestat(own, peer) and own.st_ino != _FIRST_CGROUP_NAMESPACE
