"""The numbers of a run, under the names that DLIO gives them in its summary (`statscounter.py`), and those of MLPerf's text.

DLIO's are of rank 0: bytes of the whole checkpoint over that rank's duration, the mean and the standard deviation (of the population) over
the checkpoints; its "GB" are GiB. The guidelines of 2025-06 say instead: the longest duration of any rank, the lowest throughput.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

GIB = 1 << 30
#: One checkpoint's seconds, rank by rank.
Durations = Sequence[float]


def dlio_metrics(size_bytes: int, saves: Sequence[Durations], loads: Sequence[Durations]) -> dict[str, float]:
    """`metric` of DLIO's summary.json; what was not measured is not there."""
    metrics = {"checkpoint_size_GB": size_bytes / GIB}
    for word, durations in (("save", [one[0] for one in saves]), ("load", [one[0] for one in loads])):
        if not durations:
            continue
        rates = [size_bytes / GIB / seconds for seconds in durations]
        metrics |= {
            f"{word}_checkpoint_io_mean_GB_per_second": statistics.fmean(rates),
            f"{word}_checkpoint_io_stdev_GB_per_second": statistics.pstdev(rates),
            f"{word}_checkpoint_duration_mean_seconds": statistics.fmean(durations),
            f"{word}_checkpoint_duration_stdev_seconds": statistics.pstdev(durations),
        }
    return metrics


def guideline_metrics(size_bytes: int, saves: Sequence[Durations], loads: Sequence[Durations]) -> dict[str, float]:
    """By the text: the slowest rank decides."""
    metrics = {}
    for word, durations in (("save", [max(one) for one in saves]), ("load", [max(one) for one in loads])):
        if durations:
            metrics[f"{word}_longest_rank_duration_mean_seconds"] = statistics.fmean(durations)
            metrics[f"{word}_lowest_rank_throughput_GB_per_second"] = statistics.fmean(size_bytes / GIB / seconds for seconds in durations)
    return metrics
