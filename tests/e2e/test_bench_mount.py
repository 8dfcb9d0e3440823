"""`ckptstore bench mount` as an operator calls it, with a tiny file: the report, what cannot run, and nothing left mounted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser import check_drawn
from tests.mount.mounts import can_mount

PROGRAM = Path(sys.executable).with_name("ckptstore")
TINY = ["--size", "9MiB", "--files", "20", "--entries", "30", "--rounds", "2", "--no-dropped", "--no-cold"]

pytestmark = can_mount


def bench(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CKPTSTORE_", "AWS_"))}
    command = [PROGRAM, "bench", "mount", "--folder", folder, *TINY, *arguments]
    return subprocess.run(command, env={**inherited, **environment}, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.browser
def test_the_mount_is_measured_beside_the_disk_and_another_program_and_one_that_is_missing_says_so(tmp_path: Path) -> None:
    out, page = tmp_path / "mount.json", tmp_path / "mount.html"
    done = bench(tmp_path / "scratch", "--against", "juicefs,s3fs", "--json", str(out), "--report", str(page), PATH="/nowhere")
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text("utf-8"))
    rows = {row["who"]: row for row in report["tables"][0]["rows"]}
    assert rows["s3fs"]["why_not"] == "it is not installed"
    for name in ("disk", "ckptstore", "juicefs"):
        assert len(rows[name]["hot mmap"]["values"]) == len(rows[name]["hot sequential"]["values"]) == 2
    names = {figure["name"] for figure in report["figures"]}
    assert {"mount.hot.sequential.disk", "mount.hot.mmap.disk", "mount.stat", "mount.ls", "mount.open"} <= names
    check_drawn(report, page)
    assert not (tmp_path / "scratch").exists()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text("utf-8")
