"""A report's page in headless Chromium, without a network: what of it is drawn."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ckptstore_bench.page import page as page_of
from ckptstore_bench.report import Report

#: What each kind of plot leaves in the page, once for each series (a heat map: once).
_DRAWN = {"bars": '<g class="trace bars"', "lines": 'class="trace scatter', "heatmap": 'class="hm"'}


def opened(page: Path) -> str:
    """The page's body as the browser made it. No script of it may have complained."""
    chromium = shutil.which("chromium")
    assert chromium is not None, "`make setup` installs the Debian package chromium"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=30000", "--host-resolver-rules=MAP * ~NOTFOUND"]
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium, *options, f"--user-data-dir={profile}", "--enable-logging=stderr", "--dump-dom", page.absolute().as_uri()]
        seen = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert seen.returncode == 0, seen.stderr[-2000:]
    assert not [line for line in seen.stderr.splitlines() if "CONSOLE" in line], seen.stderr[-2000:]
    return seen.stdout.partition("<body>")[2]


def check_drawn(report: Mapping[str, Any], page: Path) -> None:
    """All that the report holds is in its page, made here where there is none: each plot and series, each table and row."""
    if not page.exists():
        page.write_text(page_of(Report.model_validate(report)), "utf-8")
    body = opened(page)
    plots = report["plots"]
    assert body.count("plotly-graph-div js-plotly-plot") == len(plots)
    for kind, mark in _DRAWN.items():
        series = sum(len(plot.get("series", [1])) for plot in plots if plot["plot"] == kind)
        assert body.count(mark) == series, f"{series} of {kind}"
    rows = sum(len(table["rows"]) + 1 for table in report["tables"])
    assert len(re.findall(r"<tr\b", body)) >= rows
    assert escape(report["title"], quote=False) in body and report["command"] in body
