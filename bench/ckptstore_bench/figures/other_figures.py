"""Figures that other commands of the bench measure; here they stand among the rest, with the settings that the figures are about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptstore.config import TierSettings
from ckptstore_bench.codecs.measure import measure as measure_weights
from ckptstore_bench.codecs.report import build as codecs_report
from ckptstore_bench.codecs.weights import chosen_weights
from ckptstore_bench.interference.measuring import Request
from ckptstore_bench.interference.measuring import measure as measure_steps
from ckptstore_bench.interference.phases import Phase
from ckptstore_bench.measure import Result, Rounds
from ckptstore_bench.report import Figure
from ckptstore_bench.running import Steps
from ckptstore_bench.s3.clients import CLIENTS
from ckptstore_bench.s3.measuring import figures as s3_figures
from ckptstore_bench.s3.measuring import measure as measure_clients
from ckptstore_bench.services.seaweedfs import SeaweedS3

STEPS, BATCH = 60, 32
#: A save before every step where it is guarded, before every tenth where its drain is to be seen.
EVERY: dict[Phase, int] = {"guarded": 1, "draining": 10}
LARGEST_STATE_BYTES = 256 << 20
WEIGHTS_BYTES = 64 << 20
LARGEST_OBJECT_BYTES, PART_BYTES, PARALLEL = 512 << 20, 16 << 20, 8
BUCKET = "figures"


def measure_interference(folder: Path, size_bytes: int, rounds: int, steps: Steps) -> Result:
    figures: list[Figure] = []
    for phase, every in EVERY.items():
        size = min(size_bytes, LARGEST_STATE_BYTES)
        request = Request(size, STEPS, every, BATCH, None, rounds, (phase,), None, folder / phase)
        figures += measure_steps(steps, request).figures
    return Result(figures, Rounds())


def measure_codecs(folder: Path, size_bytes: int, rounds: int, steps: Steps) -> Result:
    results = measure_weights(chosen_weights([], WEIGHTS_BYTES), rounds, steps)
    return Result(list(codecs_report(results, rounds=rounds, settings={}, machine={}).figures), Rounds())


def measure_s3(folder: Path, size_bytes: int, rounds: int, steps: Steps) -> Result:
    """Against SeaweedFS on this machine: here the server has the greater part of the CPU time, and every client meets the same one."""
    folder.mkdir(parents=True)
    with SeaweedS3(folder / "s3") as s3, _environment(s3.environment()):
        s3.create_bucket(BUCKET)
        settings = TierSettings(name="object", kind="object", url=f"s3://{BUCKET}/bench", options={"endpoint_url": s3.endpoint_url})
        size = min(size_bytes, LARGEST_OBJECT_BYTES)
        results = measure_clients(settings, list(CLIENTS), folder, size, PART_BYTES, PARALLEL, rounds, steps)
    return Result(s3_figures(results), Rounds())


@contextmanager
def _environment(told: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
