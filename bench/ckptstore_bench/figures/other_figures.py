"""Figures that other commands of the bench measure; here they stand among the rest, with the settings that the figures are about."""

from __future__ import annotations

import os
from pathlib import Path

from ckptstore.config import TierSettings
from ckptstore_bench.codecs.measure import measure as measure_weights
from ckptstore_bench.codecs.report import build as codecs_report
from ckptstore_bench.codecs.weights import chosen_weights
from ckptstore_bench.interference.measuring import Request
from ckptstore_bench.interference.measuring import measure as measure_steps
from ckptstore_bench.measure import Result, Rounds
from ckptstore_bench.report import Figure
from ckptstore_bench.running import Steps
from ckptstore_bench.s3.clients import CLIENTS
from ckptstore_bench.s3.measuring import figures as s3_figures
from ckptstore_bench.s3.measuring import measure as measure_clients
from ckptstore_bench.services.seaweedfs import SeaweedS3

LARGEST_STATE_BYTES = 256 << 20
WEIGHTS_BYTES = 64 << 20
LARGEST_OBJECT_BYTES, PART_BYTES, PARALLEL = 512 << 20, 16 << 20, 8
BUCKET = "figures"


def measure_interference(folder: Path, size_bytes: int, rounds: int, steps: Steps) -> Result:
    """A guarded save at every step of a loop that leaves the daemon one core, as a job whose steps run on a GPU does: where training takes
    all cores, each byte that is saved costs it time, and at every step that is seen. Draining: beside a loop that takes all cores.

    Many short rounds, since the steps alone drift by more than what is looked for."""
    size = min(size_bytes, LARGEST_STATE_BYTES)
    cores = len(os.sched_getaffinity(0))
    guarded = Request(size, 10, 1, 256, max(1, cores - 1), 3 * rounds, ("guarded",), None, folder / "guarded")
    draining = Request(size, 20, 10, 32, cores, 3 * rounds, ("draining",), None, folder / "draining")
    figures: list[Figure] = []
    for request in (guarded, draining):
        figures += measure_steps(steps, request).figures
    return Result(figures, Rounds())


def measure_codecs(folder: Path, size_bytes: int, rounds: int, steps: Steps) -> Result:
    results = measure_weights(chosen_weights([], WEIGHTS_BYTES), rounds, steps)
    return Result(list(codecs_report(results, rounds=rounds, settings={}, machine={}).figures), Rounds())


def measure_s3(folder: Path, size_bytes: int, rounds: int, steps: Steps) -> Result:
    """Against SeaweedFS on this machine: here the server has the greater part of the CPU time, and every client meets the same one."""
    folder.mkdir(parents=True)
    with SeaweedS3(folder / "s3") as s3, s3.in_environment():
        s3.create_bucket(BUCKET)
        settings = TierSettings(name="object", kind="object", url=f"s3://{BUCKET}/bench", options={"endpoint_url": s3.endpoint_url})
        size = min(size_bytes, LARGEST_OBJECT_BYTES)
        results = measure_clients(settings, list(CLIENTS), folder, size, PART_BYTES, PARALLEL, rounds, steps)
    return Result(s3_figures(results), Rounds())
