"""`ckptstore bench checkpoint` as a user calls it, with a tiny model and real ranks: its report, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from ckptstore_client.cli.main import run as command_line
from tests.browser import check_drawn

PROGRAM = Path(sys.executable).with_name("ckptstore")
TINY = ["--model", "llama3-8b", "--scale", "1/4096", "--procs", "2", "--interval", "0.05"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CKPTSTORE_")]:
        monkeypatch.delenv(name)


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, "bench", "checkpoint", *arguments], capture_output=True, text=True, timeout=280, check=False)


def rows(report: dict[str, Any], title: str) -> list[dict[str, Any]]:
    return next(table["rows"] for table in report["tables"] if table["title"] == title)


@pytest.mark.browser
def test_the_report_has_dlios_metrics_and_what_mlperf_does_not_measure(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    counts = ["--writes", "3", "--reads", "4", "--within", "2"]
    done = bench(*TINY, *counts, "--folder", tmp_path / "scratch", "--json", "-", "--report", page)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (size,) = rows(report, "The workload")
    assert (size["processes"], size["files"]) == (2, 4)
    metrics = {row["metric"]: row for row in rows(report, "As MLPerf and DLIO count")}
    for act in ("save", "load"):
        for name in ("io_mean_GB_per_second", "io_stdev_GB_per_second", "duration_mean_seconds", "duration_stdev_seconds"):
            assert set(metrics[f"{act}_checkpoint_{name}"]) == {"metric", "ckptstore", "torch.save"}
    assert metrics["checkpoint_size_GB"]["ckptstore"] == size["checkpoint_bytes"] / 2**30
    beyond = {row["way"]: row for row in rows(report, "What MLPerf does not measure")}
    assert set(beyond) == {"ckptstore", "torch.save"}
    for row in beyond.values():
        assert len(row["stall_s"]["values"]) == 3
        assert len(row["slow_down_percent"]["values"]) == 2
        assert row["stall_s"]["median"] <= row["durable_s"]["median"]
        assert row["nvme_s"]["median"] > 0
    each = rows(report, "Each checkpoint")
    assert [(row["act"], row["number"]) for row in each if row["way"] == "ckptstore"] == [
        *(("save", number) for number in (1, 2, 3)),
        *(("load", number) for number in (1, 2, 3, 4)),
    ]
    assert report["settings"]["fsync"] is True
    assert any(note.startswith("Not comparable with published results: scaled by 1/4096") for note in report["notes"])
    assert "DLIO" in report["limit"]
    check_drawn(report, page)
    assert not (tmp_path / "scratch").exists()


def test_a_model_that_does_not_fit_is_refused_before_a_rank_is_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = command_line(["bench", "checkpoint", "--model", "llama3-405b", "--writes", "1000", "--folder", str(tmp_path / "scratch")])
    told = capsys.readouterr().err
    assert code == 9
    assert "--scale" in told
    assert len(told.strip().splitlines()) == 1
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "gpt-2"],
        ["--scale", "0"],
        ["--scale", "big"],
        ["--procs", "9"],
        ["--procs", "0"],
        ["--writes", "0"],
        ["--interval", "soon"],
        ["--tier", "tape"],
    ],
)
def test_nonsense_is_refused_in_one_line(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = command_line(["bench", "checkpoint", *TINY, "--folder", str(tmp_path / "scratch"), *arguments])
    told = capsys.readouterr()
    assert code == 2
    assert (told.out, len(told.err.strip().splitlines())) == ("", 1), told.err
    assert not (tmp_path / "scratch").exists()


def family_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def begun(folder: Path) -> subprocess.Popen[bytes]:
    """A run that has written its first checkpoint, and would write for hours."""
    command = [PROGRAM, "bench", "checkpoint", *TINY, "--writes", "1000", "--folder", folder]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while not (folder / "nvme/beside/global_epoch1_step2").exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.05)  # the loop's condition is the file
    return process


def daemons_of(folder: Path) -> list[int]:
    return [found.pid for found in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(found.info["cmdline"] or ())]


def test_ctrl_c_ends_every_rank_and_the_daemon_and_removes_everything(tmp_path: Path) -> None:
    process = begun(tmp_path / "scratch")
    try:
        ranks = family_of(process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors.strip() == b"ckptstore: interrupted"
    assert not psutil.wait_procs(ranks, timeout=30)[1]
    assert not (tmp_path / "scratch").exists()
    assert not daemons_of(tmp_path)


def test_a_rank_that_dies_ends_the_run_with_its_name(tmp_path: Path) -> None:
    process = begun(tmp_path / "scratch")
    try:
        victim = next(found for found in family_of(process) if "spawn_main" in " ".join(found.cmdline()))
        victim.kill()
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1
    assert b"rank " in errors
    assert b"ended with -9" in errors
    assert not (tmp_path / "scratch").exists()
