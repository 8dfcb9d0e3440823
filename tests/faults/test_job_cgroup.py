"""Whether a daemon would die with its client's job, told from cgroup paths as batch systems and container runtimes make them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptstore_tiers.memory import in_job_cgroup

POD = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f7a1c2e_1111_2222_3333_444455556666.slice"
CONTAINER = "cri-containerd-" + "ab" * 32 + ".scope"
OTHER_CONTAINER = "cri-containerd-" + "cd" * 32 + ".scope"
SESSION = "/user.slice/user-1000.slice/session-3.scope"
USER_UNITS = "/user.slice/user-1000.slice/user@1000.service/app.slice"
SLURM = "/system.slice/slurmstepd.scope/job_17"

SHARED = {
    "one_slurm_step": (f"{SLURM}/step_0/user/task_0", f"{SLURM}/step_0/user/task_1", "Slurm job"),
    "two_steps_of_one_slurm_job": (f"{SLURM}/step_0/user", f"{SLURM}/step_1/user", "Slurm job"),
    "slurm_with_version_1": ("/slurm/uid_1000/job_17/step_0", "/slurm/uid_1000/job_17/step_batch", "Slurm job"),
    "one_container": (f"{POD}/{CONTAINER}", f"{POD}/{CONTAINER}", "Kubernetes pod"),
    "two_containers_of_a_pod": (f"{POD}/{CONTAINER}", f"{POD}/{OTHER_CONTAINER}", "Kubernetes pod"),
    "kubernetes_with_cgroupfs": (
        "/kubepods/besteffort/pod0f7a1c2e-1111-2222-3333-444455556666/" + "ab" * 32,
        "/kubepods/besteffort/pod0f7a1c2e-1111-2222-3333-444455556666/" + "ab" * 32,
        "Kubernetes pod",
    ),
    "one_docker_container": ("/system.slice/docker-" + "ab" * 32 + ".scope",) * 2 + ("container",),
    "one_login_session": (SESSION, SESSION, "systemd unit"),
    "one_user_unit": (f"{USER_UNITS}/train.service", f"{USER_UNITS}/train.service", "systemd unit"),
    "one_system_service": ("/system.slice/train.service", "/system.slice/train.service", "systemd unit"),
}

APART = {
    "two_slurm_jobs": (SLURM, "/system.slice/slurmstepd.scope/job_18"),
    "a_service_beside_a_slurm_job": ("/system.slice/ckptstore.service", f"{SLURM}/step_0"),
    "two_pods": (f"{POD}/{CONTAINER}", POD.replace("0f7a", "1f7a") + f"/{OTHER_CONTAINER}"),
    "two_units_of_a_user": (f"{USER_UNITS}/ckptstore.service", f"{USER_UNITS}/train.service"),
    "a_user_unit_beside_a_session": (f"{USER_UNITS}/ckptstore.service", SESSION),
    "no_cgroups_in_use": ("/", "/"),
}


def proc_with(root: Path, own: str, peer: str, *, controller: str = "") -> Path:
    for pid, path in (("self", own), ("4242", peer)):
        (root / pid / "ns").mkdir(parents=True)
        lines = f"3:cpu:/\n1:{controller}:{path}\n" if controller else f"0::{path}\n"
        (root / pid / "cgroup").write_text(lines)
    return root


@pytest.mark.parametrize("controller", ["", "memory", "name=systemd"], ids=["version_2", "memory", "systemd"])
@pytest.mark.parametrize(("own", "peer", "kind"), SHARED.values(), ids=SHARED.keys())
def test_a_shared_job_is_recognised_and_the_advice_says_where_to_read_on(
    tmp_path: Path, own: str, peer: str, kind: str, controller: str
) -> None:
    found = in_job_cgroup(4242, proc=proc_with(tmp_path, own, peer, controller=controller))
    assert found.shared
    assert found.kind == kind
    assert own.startswith(found.cgroup)
    assert peer.startswith(found.cgroup)
    assert "docs/outside-the-job.md" in found.advice
    assert (Path(__file__).parents[2] / "docs/outside-the-job.md").exists()


@pytest.mark.parametrize(("own", "peer"), APART.values(), ids=APART.keys())
def test_a_daemon_outside_the_job_is_left_in_peace(tmp_path: Path, own: str, peer: str) -> None:
    found = in_job_cgroup(4242, proc=proc_with(tmp_path, own, peer))
    assert not found.shared
    assert found.advice == ""


def test_a_container_that_hides_its_cgroup_is_recognised_by_its_namespace(tmp_path: Path) -> None:
    proc = proc_with(tmp_path, "/", "/")
    (proc / "self/ns/cgroup").write_text("")
    (proc / "4242/ns/cgroup").hardlink_to(proc / "self/ns/cgroup")
    assert in_job_cgroup(4242, proc=proc).shared
    (proc / "4242/ns/cgroup").unlink()
    (proc / "4242/ns/cgroup").write_text("")
    assert not in_job_cgroup(4242, proc=proc).shared


@pytest.mark.parametrize("pid", [0, 4243], ids=["in_another_pid_namespace", "gone"])
def test_a_process_that_cannot_be_seen_shares_nothing(tmp_path: Path, pid: int) -> None:
    assert not in_job_cgroup(pid, proc=proc_with(tmp_path, SESSION, SESSION)).shared


def test_this_process_and_itself_can_be_compared() -> None:
    assert in_job_cgroup(os.getpid()) == in_job_cgroup(os.getpid())
