"""`ckptstore bench dcp` and `bench watch` as an operator calls them, with tiny states: every measure is there, and nothing is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.browser import check_drawn
from tests.e2e.benching import run_bench


def bench(tmp_path: Path, command: str, *arguments: str) -> dict[str, Any]:
    out, scratch = tmp_path / "report.json", tmp_path / "scratch"
    done = run_bench(command, scratch, out, *arguments)
    assert done.returncode == 0, done.stderr
    assert not scratch.exists()
    report: dict[str, Any] = json.loads(out.read_text("utf-8"))
    check_drawn(report, tmp_path / "report.html")
    assert report["settings"]["tiers"][0]["name"] == "nvme"
    return report


def bounds(report: dict[str, Any]) -> dict[str, float]:
    assert all(len(figure["values"]) == report["rounds"] for figure in report["figures"])
    return {figure["name"]: round(figure["bound"], 3) for figure in report["figures"]}


@pytest.mark.browser
def test_saves_and_loads_with_dcp_are_measured_beside_its_own_writer_and_reader(tmp_path: Path) -> None:
    tiny = ["--size", "8MiB", "--ranks", "2", "--others", "1", "--tensors", "4", "--planned", "300", "--rounds", "1"]
    report = bench(tmp_path, "dcp", *tiny)
    assert bounds(report) == {
        "dcp.stall.fs": 0.333,
        "dcp.stall.fs-best": 1.0,
        "dcp.durable.fs": 0.5,
        "dcp.durable.fs-best": 0.7,
        "dcp.load.same_ranks.fs": 0.5,
        "dcp.load.same_ranks.fio": 0.85,
        "dcp.load.other_ranks.fs": 0.5,
        "dcp.load.other_ranks.fio": 0.85,
        "dcp.collectives": 0.0,
        "dcp.plan": 500.0,
    }
    (collectives,) = [figure for figure in report["figures"] if figure["name"] == "dcp.collectives"]
    assert collectives["values"] == [0.0], "a sharded save takes none"
    assert [row["way"] for row in report["tables"][0]["rows"]] == ["store", "fs", "fs-best", "fio"]


@pytest.mark.browser
def test_a_watcher_is_measured_from_the_publish_until_it_holds_the_weights(tmp_path: Path) -> None:
    report = bench(tmp_path, "watch", "--size", "8MiB", "--tensors", "4", "--rounds", "2")
    assert bounds(report) == {"watch.loaded": 0.3}
    taken = {row["what"]: row["taken_s"] for row in report["tables"][0]["rows"]}
    heard, held = (taken[f"from the publish until {what}"]["values"] for what in ("the watcher hears of it", "it holds the weights"))
    assert all(0 <= told < loaded for told, loaded in zip(heard, held, strict=True))


def test_collectives_are_counted_where_there_are_any() -> None:
    """Else a sharded save would take none whatever it did."""
    import torch
    import torch.distributed as dist

    from ckptstore_bench.dcp.collectives import collectives_in

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        gathered: list[object] = [None]
        for begun in (lambda: dist.all_reduce(torch.ones(4)), dist.barrier, lambda: dist.all_gather_object(gathered, {"a": 1})):
            assert collectives_in(begun) > 0
        assert collectives_in(lambda: torch.ones(4).add_(1)) == 0
    finally:
        dist.destroy_process_group()
