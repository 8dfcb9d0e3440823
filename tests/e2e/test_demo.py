"""The demo is a test too: it exits with 0 only if all that it claims holds. Here it runs with fewer steps, and is interrupted."""

from __future__ import annotations

import os
import re
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


#: Of a save in the table that the demo ends with: how training stood still, then when each place had it.
MEASURED = ["stall", "snapshot", "nvme", "pfs", "object"]
FIGURE = re.compile(r"~?\d+(\.\d+)? m?s")


def demo(folder: Path, *, stderr: int = subprocess.STDOUT) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ckptstore_bench.demo", "--save-every", "1", "--keep", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, preexec_fn=heed_ctrl_c)


def cells(line: str) -> list[str]:
    """Of a row of a table; the last column has no heading."""
    return [cell.strip() for cell in re.split("[┃│]", line)[1:-1]]


def assert_ends_with_its_timeline_and_its_table(out: str) -> None:
    """A lane for each process and tier, then a row for each save that has all its figures, after the last line of the story itself."""
    lines = out.splitlines()
    told = max(at for at, line in enumerate(lines) if re.match(r" *\d+\.\d s  ", line))
    drawn = next(at for at, line in enumerate(lines) if line.startswith("Timeline: "))
    assert told < drawn, "the timeline comes at the end"
    assert [line.split()[0] for line in lines[drawn + 1 : drawn + 6]] == ["trainer", "daemon", "nvme", "pfs", "object"]
    trainer, daemon, *tiers = lines[drawn + 1 : drawn + 6]
    assert trainer.count("✗") == 3 and "✗" in daemon and all("●" in lane for lane in tiers)
    assert ["∅" in lane for lane in tiers] == [True, True, False], "NVMe and the parallel file system were lost, the object store was not"
    (heading,) = [at for at, line in enumerate(lines) if "stall" in cells(line)]
    assert cells(lines[heading]) == ["life", "step", *MEASURED, ""]
    assert heading > drawn + 6, "the table comes below the timeline"
    saves = [row for line in lines[heading + 1 :] if len(row := cells(line)) == 3 + len(MEASURED)]
    measured = [int(step) for _, step, *figures, _ in saves if all(FIGURE.fullmatch(figure) for figure in figures)]
    assert measured == list(range(1, 13)), saves
    assert lines[-1].startswith("All of it held, in ")


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
    with demo(tmp_path / "demo", stderr=subprocess.PIPE) as process:
        said, complaints = process.communicate(timeout=280)
    assert process.returncode == 0, said + complaints
    assert "the final parameters are bitwise those of the uninterrupted run" in said
    assert_ends_with_its_timeline_and_its_table(said)
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
