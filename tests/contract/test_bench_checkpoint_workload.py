"""MLPerf Storage's checkpointing workload: the sizes and files of its models, and its metrics, as worked out by hand."""

from __future__ import annotations

import statistics
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptstore.errors import InvalidInput
from ckptstore_bench.checkpoint.metrics import GIB, dlio_metrics, guideline_metrics
from ckptstore_bench.checkpoint.workload import PARALLELISM, Workload, why_not_comparable, workload

WHOLE = Fraction(1)
MODELS = st.sampled_from(sorted(PARALLELISM))


def whole(model: str) -> Workload:
    return workload(model, mode="default", processes=None, scale=WHOLE)


def optimizer_bytes(load: Workload) -> int:
    return sum(file.size_bytes for rank in range(load.processes) for file in load.files(rank) if "optim" in file.name)


# --- sizes -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "ranks", "weights_gib", "optimizer_gib", "total_gib", "files"),
    [
        ("llama3-8b", 8, 15, 90, 104.7, 16),
        ("llama3-70b", 64, 130, 781, 911.2, 128),
        ("llama3-405b", 512, 756, 4536, 5292, 1544),
        ("llama3-1t", 1024, 2204, 13223, 15427, 2072),
    ],
)
def test_models_have_the_published_sizes_and_numbers_of_files(
    model: str, ranks: int, weights_gib: float, optimizer_gib: float, total_gib: float, files: int
) -> None:
    load = whole(model)
    optimizer = optimizer_bytes(load)
    assert load.processes == ranks
    assert load.size_bytes / GIB == pytest.approx(total_gib, rel=2e-4)
    assert optimizer / GIB == pytest.approx(optimizer_gib, rel=4e-3)
    assert (load.size_bytes - optimizer) / GIB == pytest.approx(weights_gib, rel=4e-3)
    assert load.file_count == files


def test_the_parameters_of_llama3_8b_are_counted_as_its_authors_count_them() -> None:
    assert whole("llama3-8b").parameters == 8_030_261_248


@pytest.mark.parametrize("model", sorted(PARALLELISM))
def test_no_two_ranks_write_a_file_of_the_same_name(model: str) -> None:
    load = whole(model)
    names = [file.name for rank in range(load.processes) for file in load.files(rank)]
    assert len(set(names)) == len(names)


def test_files_are_called_as_deepspeed_calls_them() -> None:
    assert [file.name for file in whole("llama3-70b").files(10)] == [
        "zero_pp_rank_1_mp_rank_2_optim_states.pt",
        "zero_pp_rank_1_mp_rank_2_model_states.pt",
    ]
    # 126 layers over 32 stages: thirty of four layers, then two of three; rank 0 has the embedding, the last stage head and norm.
    files = whole("llama3-405b")
    assert [file.name for file in files.files(0)][1:] == [f"layer_{layer}-model_0_model_states.pt" for layer in range(5)]
    assert [file.name for file in files.files(255)][1:] == [f"layer_{layer}-model_255_model_states.pt" for layer in range(124, 129)]
    assert len(files.files(256)) == 1, "with ZeRO 1, only the first data-parallel rank writes weights"


@pytest.mark.parametrize("model", ["llama3-405b", "llama3-1t"])
def test_every_layer_is_written_once_by_each_tensor_parallel_rank(model: str) -> None:
    load = whole(model)
    layers = [file.name.partition("-")[0] for rank in range(load.processes) for file in load.files(rank) if file.name.startswith("layer")]
    assert {layers.count(name) for name in set(layers)} == {8}
    assert len(set(layers)) == load.decoder.layers + 3


@settings(deadline=None, max_examples=15)
@given(MODELS, st.integers(1, 16))
def test_a_subset_writes_what_the_first_official_ranks_write(model: str, processes: int) -> None:
    official, processes = whole(model), min(processes, PARALLELISM[model].ranks)
    subset = workload(model, mode="subset", processes=processes, scale=WHOLE)
    assert [subset.files(rank) for rank in range(processes)] == [official.files(rank) for rank in range(processes)]


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(["llama3-8b", "llama3-70b"]), st.integers(1, 8))
def test_the_whole_model_on_other_numbers_of_processes_has_the_same_bytes(model: str, groups: int) -> None:
    official = PARALLELISM[model]
    load = workload(model, mode="default", processes=groups * official.tensor * official.pipeline, scale=WHOLE)
    assert load.size_bytes == pytest.approx(whole(model).size_bytes, rel=1e-3)


@settings(deadline=None, max_examples=15)
@given(MODELS, st.integers(1, 4096))
def test_scaling_keeps_the_files_and_shortens_their_tensors(model: str, divisor: int) -> None:
    scaled = workload(model, mode="subset", processes=None, scale=Fraction(1, divisor))
    unscaled = workload(model, mode="subset", processes=None, scale=WHOLE)
    for rank in range(scaled.processes):
        small, large = scaled.files(rank), unscaled.files(rank)
        assert [file.name for file in small] == [file.name for file in large]
        for one, other in zip(small, large, strict=True):
            expected = [max(1, round(tensor.elements / divisor)) for tensor in other.tensors]
            assert [tensor.elements for tensor in one.tensors] == expected


@pytest.mark.parametrize(
    "given",
    [
        {"model": "gpt-2"},
        {"processes": 9},
        {"processes": 0},
        {"scale": Fraction(0)},
        {"scale": Fraction(3, 2)},
        {"model": "llama3-70b", "mode": "default", "processes": 12},
        {"model": "llama3-405b", "mode": "default", "processes": 8},
    ],
)
def test_a_workload_that_does_not_exist_is_refused(given: dict[str, Any]) -> None:
    asked = {"model": "llama3-8b", "mode": "subset", "processes": None, "scale": WHOLE, **given}
    if asked["processes"] == 0:
        asked["processes"] = -1  # the command line refuses 0 before
    with pytest.raises(InvalidInput):
        workload(asked.pop("model"), **asked)


def test_a_run_by_the_rules_is_called_comparable_and_any_other_says_why_not() -> None:
    official = workload("llama3-8b", mode="subset", processes=None, scale=WHOLE)
    assert why_not_comparable(official, mode="subset", writes=10, reads=10, interval_s=5.0) == []
    other = workload("llama3-8b", mode="subset", processes=2, scale=Fraction(1, 64))
    why = why_not_comparable(other, mode="subset", writes=3, reads=10, interval_s=1.0)
    assert [reason.partition(" ")[0] for reason in why] == ["scaled", "a", "3", "1"]


# --- metrics -----------------------------------------------------------------------------------------------------------------------------


def test_dlio_counts_the_whole_checkpoint_over_the_seconds_of_rank_0() -> None:
    metrics = dlio_metrics(8 * GIB, saves=[[1.0, 9.0], [2.0, 0.1]], loads=[[4.0, 8.0]])
    assert metrics == {
        "checkpoint_size_GB": 8.0,
        "save_checkpoint_io_mean_GB_per_second": 6.0,  # of 8 and 4, not 16 GiB in 3 s
        "save_checkpoint_io_stdev_GB_per_second": 2.0,
        "save_checkpoint_duration_mean_seconds": 1.5,
        "save_checkpoint_duration_stdev_seconds": 0.5,
        "load_checkpoint_io_mean_GB_per_second": 2.0,
        "load_checkpoint_io_stdev_GB_per_second": 0.0,
        "load_checkpoint_duration_mean_seconds": 4.0,
        "load_checkpoint_duration_stdev_seconds": 0.0,
    }


def test_the_text_counts_the_slowest_rank() -> None:
    metrics = guideline_metrics(8 * GIB, saves=[[1.0, 4.0], [2.0, 1.0]], loads=[])
    assert metrics == {"save_longest_rank_duration_mean_seconds": 3.0, "save_lowest_rank_throughput_GB_per_second": 3.0}


@given(st.lists(st.lists(st.floats(0.01, 100), min_size=3, max_size=3), min_size=1, max_size=10))
def test_the_slowest_rank_is_never_faster_than_rank_0(saves: list[list[float]]) -> None:
    dlio, text = dlio_metrics(GIB, saves, []), guideline_metrics(GIB, saves, [])
    assert text["save_longest_rank_duration_mean_seconds"] >= dlio["save_checkpoint_duration_mean_seconds"] - 1e-9
    assert text["save_lowest_rank_throughput_GB_per_second"] <= dlio["save_checkpoint_io_mean_GB_per_second"] + 1e-9
    assert dlio["save_checkpoint_duration_mean_seconds"] == pytest.approx(statistics.fmean(one[0] for one in saves))
