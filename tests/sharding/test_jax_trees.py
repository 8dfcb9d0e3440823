"""JAX pytrees over several devices of this machine: eight processors of jax's CPU back end, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.daemon_process import DaemonProcess
from tests.sharding.simulated import Ranks

PROGRAM = Path(__file__).with_name("jax_program.py")


def test_trees_of_sharded_arrays_come_back_bit_for_bit_on_any_mesh(daemon: DaemonProcess, ranks: Ranks, folder: str) -> None:
    """The program asserts; what it has saved is then loaded here, without jax, as numpy arrays."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(PROGRAM), str(daemon.home), folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and done.stdout.endswith("all is well\n"), done.stdout + done.stderr[-3000:]
    whole = ranks[0].load(f"{folder}/two-dimensional", only=["step", "params/dense/kernel"])
    assert whole["step"] == 7 and whole["params"]["dense"]["kernel"].tolist()[0][:3] == [0.0, 1.0, 2.0]
    sizes = [file.stat().st_size for file in (daemon.home / "nvme/objects" / folder[1:] / "replicated").glob("rank-*")]
    assert sizes[0] < 2 * 4096 * 4, "what all devices hold is stored once"
