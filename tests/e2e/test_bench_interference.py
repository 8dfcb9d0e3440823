"""`ckptstore bench interference` as a user calls it, and the arithmetic of slow-downs. How slow it is, is not asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ckptstore_bench.interference.interference_report import slow_downs
from ckptstore_bench.interference.phases import PhaseTimes, percentile
from ckptstore_bench.interference.training import Training
from ckptstore_client.cli.main import run as command_line
from tests.browser import check_drawn

PROGRAM = Path(sys.executable).with_name("ckptstore")
TINY = ["--size", "1MiB", "--steps", "4", "--every", "2", "--batch", "2", "--rounds", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CKPTSTORE_")]:
        monkeypatch.delenv(name)


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, "bench", "interference", *arguments], capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.browser
def test_each_phase_is_reported_beside_the_steps_alone_around_it(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = bench(*TINY, "--folder", tmp_path / "scratch", "--json", "-", "--report", page)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    (table,) = report["tables"]
    rows = {row["phase"]: row for row in table["rows"]}
    assert list(rows) == ["saving", "guarded", "writing", "draining"]
    for row in rows.values():
        for key in ("mean_s", "alone_mean_s", "p99_s", "alone_p99_s", "mean_percent", "p99_percent"):
            assert len(row[key]["values"]) == 2, "one a round"
        slow_downs_found = [
            (mean / alone - 1) * 100 for mean, alone in zip(row["mean_s"]["values"], row["alone_mean_s"]["values"], strict=True)
        ]
        assert row["mean_percent"]["values"] == pytest.approx(slow_downs_found)
    stalls = [len(rows[phase]["stall_s"]["values"]) for phase in ("saving", "guarded")]
    assert stalls == [4, 4], "two rounds of four steps, a save every two"
    for phase in ("writing", "draining"):
        assert rows[phase]["stall_s"] is None
        assert all(done <= 4 for done in rows[phase]["done"]["values"]), "each save has a step of its own"
    assert {figure["name"]: figure["bound"] for figure in report["figures"]} == {
        "interference.saving": None, "interference.guarded": 3.0,
        "interference.writing": None, "interference.draining": 5.0,
    }  # fmt: skip
    tiers = report["settings"]["tiers"]
    assert [(tier["name"], tier.get("shared"), tier["write_threads"]) for tier in tiers] == [("nvme", None, 6), ("pfs", True, 6)]
    assert report["settings"]["threads"] == 1
    check_drawn(report, page)
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--size", "0"], ["--size", "1000TiB"], ["--phases", "sleeping"], ["--phases", ""], ["--steps", "1"], ["--every", "0"]],
)
def test_nonsense_is_refused_in_one_line(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = command_line(["bench", "interference", *TINY, "--folder", str(tmp_path / "scratch"), *arguments])
    told = capsys.readouterr()
    assert code in (2, 9)
    assert (told.out, len(told.err.strip().splitlines())) == ("", 1), told.err
    assert not (tmp_path / "scratch").exists()


def test_draining_needs_a_tier_to_drain_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    code = command_line(["--home", str(home), "bench", "interference", *TINY, "--phases", "draining"])
    assert code == 2
    assert "--phases" in capsys.readouterr().err
    assert not home.exists()


def test_a_slow_down_is_of_the_mean_and_of_the_slowest_hundredth() -> None:
    times = PhaseTimes(steps_s=[1.0] * 9 + [6.0], alone_s=[1.0] * 9 + [2.0])
    mean, p99 = slow_downs([{"saving": times}], "saving")
    assert mean == pytest.approx([100 * (1.5 / 1.1 - 1)])
    assert p99 == pytest.approx([200.0])


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert [percentile([3.0, 1.0, 2.0], percent) for percent in (0, 50, 99)] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("size_bytes", [1 << 20, 10_000_000])
def test_the_training_state_has_the_size_that_was_asked_for(size_bytes: int) -> None:
    training = Training(size_bytes, batch=1)
    assert training.size_bytes == pytest.approx(size_bytes, rel=0.05)
    before = [parameter.clone() for parameter in training.model.parameters()]
    called: list[bool] = []
    assert training.step(lambda: called.append(True)) > 0
    assert called == [True]
    assert any((one != other).any() for one, other in zip(before, training.model.parameters(), strict=True)), "it learns"
