"""`ckptstore bench figures` as `make bench` calls it, with tiny states: which figures there are, what they are held to, and on what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.browser import check_drawn
from tests.e2e.benching import run_bench

BOUNDS = {"incremental.written": (1.02, False), "load.memory": (0.65, True)}


def figures(tmp_path: Path, *arguments: str, code: int = 0) -> tuple[dict[str, Any], str]:
    out, scratch = tmp_path / "report.json", tmp_path / "scratch"
    done = run_bench("figures", scratch, out, *arguments)
    assert done.returncode == code, done.stderr
    assert not scratch.exists() or not any(scratch.iterdir())
    return json.loads(out.read_text("utf-8")) if out.exists() else {}, done.stderr


@pytest.mark.browser
def test_each_figure_is_told_with_its_bound_and_what_it_was_measured_on(tmp_path: Path) -> None:
    report, _ = figures(tmp_path, "--only", "incremental", "--only", "memory", "--size", "16MiB", "--rounds", "2")
    found = {figure["name"]: (figure["bound"], figure["at_least"]) for figure in report["figures"]}
    assert found == BOUNDS
    assert all(len(figure["values"]) == 2 and min(figure["values"]) > 0 for figure in report["figures"])
    assert report["settings"]["families"] == ["incremental", "memory"]
    assert {"fio", "torch", "obstore", "botocore"} <= report["machine"]["versions"].keys()
    check_drawn(report, tmp_path / "report.html")


def test_a_figure_that_nobody_knows_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    report, said = figures(tmp_path, "--only", "speed", code=2)
    assert report == {}
    assert "there are save" in said
