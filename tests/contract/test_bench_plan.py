"""The arithmetic of `bench plan`: cases worked out by hand, and what must hold for every job."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import InvalidInput
from ckptstore_bench.plan.answer import Plan, make_plan
from ckptstore_bench.plan.demand import demand
from ckptstore_bench.plan.intervals import daly_interval_s, goodput, young_interval_s
from ckptstore_bench.plan.job import Job, mtbf_of
from ckptstore_bench.plan.quantities import duration, parse_count, scaled
from ckptstore_bench.plan.speeds import Speed, TierSpeed, parse_speed, parse_tiers, read_measured
from ckptstore_bench.plan.ways import GUARDED_STALL_S
from ckptstore_client.cli.main import run as command_line
from tests.browser import check_drawn

GB = 1e9
TIERS = parse_tiers(["memory=20GB/s", "nvme=10GB/s,5GB/s"], ["pfs=100GB/s"])
TWENTY_TB = Job(20e12, 1000, ranks_per_node=8, interval_s=300, mtbf_s=4 * 3600, tensor_parallel=8)

times = st.floats(0.001, 1e5)
jobs = st.builds(
    Job,
    checkpoint_bytes=st.floats(1e6, 1e15),
    nodes=st.integers(1, 20_000),
    ranks_per_node=st.just(8),
    interval_s=st.floats(1, 1e5),
    mtbf_s=st.floats(60, 1e7),
    node_losses=st.floats(0, 1),
    tensor_parallel=st.sampled_from([1, 2, 8]),
    overlap_s=st.none() | times,
)
speeds = st.builds(Speed, st.floats(1e6, 1e12), st.floats(1e6, 1e12))


def ways_of(plan: Plan) -> dict[str, Any]:
    return {way.name: way for way in plan.ways}


# --- by hand -----------------------------------------------------------------------------------------------------------------------------


def test_twenty_terabytes_in_five_minutes_read_by_eight_tensor_parallel_ranks() -> None:
    plan = make_plan(TWENTY_TB, TIERS)
    memory, nvme, pfs = plan.demands
    assert TWENTY_TB.node_bytes == 20e9
    assert TWENTY_TB.memory_bytes == 40e9
    assert memory.write_s == 1.0  # 20 GB at 20 GB/s: the stall of a plain copy
    assert nvme.write_s == 2.0
    assert nvme.read_once_s == 4.0  # 20 GB at 5 GB/s, each byte once a node
    assert nvme.read_each_s == 32.0  # the same by eight ranks
    assert pfs.needed_in_all == pytest.approx(66.667 * GB, rel=1e-4)
    assert pfs.allowed_write == 0.1 * GB
    assert pfs.write_s == 200.0
    assert pfs.read_once_s == 200.0
    assert pfs.read_each_s == 1600.0
    assert [found.verdict for found in plan.demands] == ["keeps up"] * 3
    text = "\n".join(plan.sentences())
    assert "20 TB every 5 min from 1,000 nodes × 8 ranks is 20 GB a node and 2.5 GB a rank: 66.7 GB/s into the shared tiers" in text
    assert "20 TB leave the tier when a node reads each byte once, 160 TB when each rank reads for itself" in text
    assert "the shortest interval that all sustain is 4 min 10 s" in text  # 200 s, with a fifth to spare


def test_a_tier_that_needs_longer_than_the_interval_falls_behind() -> None:
    slow = parse_tiers(["nvme=10GB/s"], ["pfs=50GB/s"])  # 400 s for what comes every 300 s
    plan = make_plan(TWENTY_TB, slow)
    assert [found.verdict for found in plan.demands] == ["keeps up", "falls behind"]
    way = ways_of(plan)["no memory tier, blocks until nvme"]
    assert way.goodput_at_interval is None
    assert way.best_interval_s == 500.0  # 400 s are 0.8 of it
    assert any(told.startswith("pfs falls behind: it needs 6 min 40 s for what comes every 5 min") for told in plan.sentences())


def test_a_tier_that_is_busy_nine_tenths_of_the_time_never_catches_up() -> None:
    (found,) = make_plan(TWENTY_TB, parse_tiers([], ["pfs=74GB/s"])).demands
    assert found.busy == pytest.approx(0.9009, rel=1e-3)
    assert found.verdict == "never catches up"


def test_young_and_daly_as_worked_out_by_hand() -> None:
    # δ = 5 min, M = 24 h: √(2·5·1440) = 120 min; Daly adds a third and a ninth of small things and takes δ off.
    assert young_interval_s(300, 86_400) == 7200.0
    ratio = 300 / (2 * 86_400)
    assert daly_interval_s(300, 86_400) == pytest.approx(7200 * (1 + math.sqrt(ratio) / 3 + ratio / 9) - 300)
    assert daly_interval_s(300, 86_400) == pytest.approx(7001.4, abs=0.1)
    assert daly_interval_s(200, 100) == 100  # a stall of twice the MTBF: as often as it fails


def test_goodput_as_worked_out_by_hand() -> None:
    # M = 1000 s, τ = 90, δ = 10, R = 100: 90 / (1000 · e^0.1 · (e^0.1 − 1)) = 90 / (1000 · 1.105171 · 0.105171)
    assert goodput(90, 10, 100, 1000) == pytest.approx(0.774321, abs=1e-5)


def test_goodput_is_what_a_simulated_job_sees() -> None:
    """Daly's formula against a job that fails at random, seeded."""
    interval_s, stall_s, restart_s, mtbf_s, work_s = 300.0, 20.0, 120.0, 4000.0, 4_000_000.0
    rng, clock_s, done_s = random.Random(7), 0.0, 0.0
    fails_at_s = rng.expovariate(1 / mtbf_s)
    while done_s < work_s:
        ends_s = clock_s + interval_s + stall_s
        if fails_at_s >= ends_s:
            clock_s, done_s = ends_s, done_s + interval_s
            continue
        while True:  # restarts fail too
            clock_s = fails_at_s
            fails_at_s = clock_s + rng.expovariate(1 / mtbf_s)
            if fails_at_s >= clock_s + restart_s:
                clock_s += restart_s
                break
    assert done_s / clock_s == pytest.approx(goodput(interval_s, stall_s, restart_s, mtbf_s), abs=0.004)


def test_a_guarded_save_stalls_only_for_what_forward_and_backward_do_not_cover() -> None:
    def stall_s(overlap_s: float | None) -> float:
        job = Job(20e12, 1000, tensor_parallel=1, overlap_s=overlap_s)
        return float(ways_of(make_plan(job, TIERS))["memory tier, guarded"].stall_s)

    assert stall_s(None) == GUARDED_STALL_S
    assert stall_s(5.0) == GUARDED_STALL_S
    assert stall_s(0.25) == 0.75
    assert stall_s(0.0) == 1.0  # no worse than the plain copy


def test_a_group_larger_than_a_node_reads_the_bytes_of_the_whole_group_on_each_of_its_nodes() -> None:
    job = Job(16e9, 4, ranks_per_node=2, tensor_parallel=4)
    assert job.node_bytes == 4e9
    assert job.read_once_bytes == 8e9  # two groups of 8 GB, each spread over two nodes
    assert job.read_each_bytes == 16e9  # two ranks, 8 GB each


def test_a_job_fails_as_often_per_rank_as_llama_3_did() -> None:
    assert mtbf_of(16_384) == pytest.approx(54 * 24 * 3600 / 419)
    assert mtbf_of(1024) == pytest.approx(16 * mtbf_of(16_384))


def test_a_shared_tier_gives_each_node_its_part_and_no_more_than_the_node_can_take() -> None:
    (tier,) = parse_tiers(["pfs=4GB/s"], ["pfs=100GB/s,200GB/s"])
    assert tier.shared
    assert tier.write(10) == 4 * GB
    assert tier.write(100) == 1 * GB
    assert tier.read(100) == 2 * GB


def test_without_a_shared_tier_the_plan_says_what_a_lost_node_takes_along() -> None:
    plan = make_plan(TWENTY_TB, parse_tiers(["memory=20GB/s", "nvme=10GB/s"], []))
    assert any("No tier is shared" in told for told in plan.sentences())


# --- for every job -----------------------------------------------------------------------------------------------------------------------


@given(times, times, times, st.floats(1, 1e7))
def test_goodput_lies_between_nothing_and_everything(interval_s: float, stall_s: float, restart_s: float, mtbf_s: float) -> None:
    assert 0 <= goodput(interval_s, stall_s, restart_s, mtbf_s) <= 1


@given(st.floats(0.001, 3600), st.floats(60, 1e7))
def test_dalys_interval_is_as_good_as_the_best_of_a_fine_grid(stall_s: float, mtbf_s: float) -> None:
    best_s = daly_interval_s(stall_s, mtbf_s)
    around = [best_s * factor for factor in (0.5, 0.7, 0.9, 1.1, 1.4, 2.0)]
    loss = 1 - goodput(best_s, stall_s, 0, mtbf_s)
    assert all(loss <= (1 - goodput(other_s, stall_s, 0, mtbf_s)) * 1.02 + 1e-12 for other_s in around)


@given(st.floats(0.001, 3600), st.floats(60, 1e7))
def test_daly_comes_down_to_young_where_a_stall_is_small(stall_s: float, mtbf_s: float) -> None:
    daly_s, young_s = daly_interval_s(stall_s, mtbf_s), young_interval_s(stall_s, mtbf_s)
    assert 0 < daly_s <= young_s * 1.001 or stall_s >= 2 * mtbf_s
    if stall_s < mtbf_s / 1e4:
        assert daly_s == pytest.approx(young_s, rel=0.02)


@given(jobs, speeds, speeds)
def test_a_tier_needs_the_bytes_over_the_interval_and_is_busy_by_what_it_is_allowed(job: Job, node: Speed, in_all: Speed) -> None:
    found = demand(job, TierSpeed("pfs", node, shared=True, in_all=in_all))
    assert found.needed_in_all == pytest.approx(found.needed_node * job.nodes)
    assert found.busy == pytest.approx(found.needed_node / found.allowed_write)
    assert found.allowed_write * job.nodes <= in_all.write * 1.000001
    assert found.read_once_s <= found.read_each_s * 1.000001
    assert (found.verdict == "falls behind") == (found.write_s > job.interval_s * 1.0000001) or found.busy == pytest.approx(1)


@given(jobs, speeds, speeds, speeds)
def test_guarding_is_never_worse_than_the_plain_copy(job: Job, memory: Speed, nvme: Speed, pfs: Speed) -> None:
    tiers = (TierSpeed("memory", memory), TierSpeed("nvme", nvme), TierSpeed("pfs", pfs, shared=True))
    found = ways_of(make_plan(job, tiers))
    guarded, plain = found["memory tier, guarded"], found["memory tier, plain copy"]
    assert guarded.stall_s <= plain.stall_s
    assert guarded.goodput_at_best >= plain.goodput_at_best * (1 - 0.01)  # Daly's interval is itself an approximation
    assert all(way.best_interval_s >= way.shortest_s for way in found.values())


@given(st.integers(1, 10**15))
def test_a_count_reads_back(count: int) -> None:
    assert parse_count(str(count)) == count


@given(st.floats(1e-6, 1e12))
def test_every_time_is_written_in_two_units_at_most(seconds: float) -> None:
    assert 1 <= len(duration(seconds).split()) // 2 <= 2


# --- as a user writes it -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "count"), [("1T", 10**12), ("405B", 405 * 10**9), ("8.03b", 8_030_000_000), ("70G", 70 * 10**9)])
def test_counts_are_read_with_their_units(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "T", "0", "-1B", "1X", "nan", "1e9"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_count(text)


@pytest.mark.parametrize("text", ["", "0", "6GB/s,", "1,2,3", "fast"])
def test_what_is_no_speed_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_speed(text)


def test_quantities_are_written_as_people_say_them() -> None:
    assert [scaled(66.7e9, "B/s"), scaled(20e12, "B"), scaled(999.96e9, "B")] == ["66.7 GB/s", "20 TB", "1 TB"]
    assert [duration(s) for s in (0.002, 29.84, 250, 3600, 8000, 100_000)] == [
        "2 ms", "29.8 s", "4 min 10 s", "1 h", "2 h 13 min", "1 d 3 h",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"nodes": 0}, {"checkpoint_bytes": 0}, {"node_losses": 1.5}, {"tensor_parallel": 3}, {"interval_s": -1.0}, {"relaunch_s": -1.0}],
)
def test_a_job_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Job(**{"checkpoint_bytes": 1e9, "nodes": 4, **change})


def test_a_file_that_bench_tiers_did_not_write_is_refused_by_name(tmp_path: Path) -> None:
    for content in ("", "{}", '{"tables": []}', "[1]"):
        file = tmp_path / "measured.json"
        file.write_text(content, "utf-8")
        with pytest.raises(InvalidInput, match=r"measured\.json"):
            read_measured(file)


def plan_command(*arguments: str) -> int:
    return command_line(["bench", "plan", *arguments])


@pytest.mark.browser
def test_the_command_gives_the_plan_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = plan_command("--params", "1T", "--nodes", "1024", "--memory", "15GB/s", "--shared-tier", "pfs=200GB/s", "--json", "-")
    told = capsys.readouterr()
    assert code == 0, told.err
    report = json.loads(told.out)
    (job,) = next(table["rows"] for table in report["tables"] if table["title"] == "The job")
    assert job["checkpoint_bytes"] == 14e12
    assert "Young 1974" in report["limit"]
    assert report["machine"]["kernel"]
    assert len(report["plots"]) == 2
    check_drawn(report, tmp_path / "report.html")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nodes", "4"],
        ["--nodes", "4", "--params", "1B", "--size", "1TB"],
        ["--nodes", "4", "--params", "0"],
        ["--nodes", "4", "--params", "1B", "--interval", "0"],
        ["--nodes", "4", "--params", "1B", "--tier", "nvme"],
        ["--nodes", "0", "--params", "1B"],
        ["--nodes", "4", "--params", "1B", "--measured", "/nowhere/measured.json"],
    ],
)
def test_the_command_refuses_nonsense_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = plan_command(*arguments)
    told = capsys.readouterr()
    assert code == 2
    assert (told.out, len(told.err.strip().splitlines())) == ("", 1), told.err
