"""The demo is a test too: it exits with 0 only if all that it claims holds. Here it runs with fewer steps, and is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.shell import heed_ctrl_c

#: Two steps, a state, a third step; then the state again, with another random state, and the third step again.
WITHOUT_RANDOM_STATE = """
from copy import deepcopy
from ckptstore_bench.demo.training import Training
training = Training()
training.advance(), training.advance()
state = deepcopy(training.state())
training.advance()
print(training.fingerprint())
for rng in (state["rng"], Training(seed=5).state()["rng"]):
    training.restore({**deepcopy(state), "rng": rng})
    training.advance()
    print(training.fingerprint())
"""


def demo(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ckptstore_bench.demo", "--save-every", "1", "--keep", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed_ctrl_c)


def processes_of(folder: Path) -> list[str]:
    """Command lines, of anybody, that name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:  # it ended while we looked
                continue
            if str(folder) in command:
                found.append(command)
    return found


def test_killed_four_times_a_run_ends_with_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    with demo(tmp_path / "demo") as process:
        said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert "the final parameters are bitwise those of the uninterrupted run" in said
    assert processes_of(tmp_path) == []


def test_a_resumed_run_without_its_random_state_would_be_noticed() -> None:
    answer = subprocess.run([sys.executable, "-c", WITHOUT_RANDOM_STATE], capture_output=True, text=True, timeout=120, check=True)
    uninterrupted, resumed, forgetful = answer.stdout.split()
    assert resumed == uninterrupted
    assert forgetful != uninterrupted


@pytest.mark.parametrize(("number", "when"), [(signal.SIGINT, "started by the trainer"), (signal.SIGTERM, "an uninterrupted run")])
def test_an_interrupted_demo_leaves_no_process_behind(tmp_path: Path, number: signal.Signals, when: str) -> None:
    with demo(tmp_path / "demo") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if when in line:
                break
        assert processes_of(tmp_path) != [], "the demo ended before it started anything"
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert processes_of(tmp_path) == []
