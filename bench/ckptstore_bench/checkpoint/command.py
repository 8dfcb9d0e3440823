"""`ckptstore bench checkpoint`: its options. Imports nothing heavy before it is called."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from ckptstore.durations import parse_duration
from ckptstore.errors import InvalidInput
from ckptstore_bench.report import Report
from ckptstore_bench.running import FolderOption, JsonFile, PageFile, Steps, run
from ckptstore_client.cli.invocation import Invocation


class Mode(StrEnum):
    SUBSET = "subset"
    DEFAULT = "default"


class Against(StrEnum):
    TORCH = "torch"
    NONE = "none"


def checkpoint(
    invocation: Invocation,
    model: Annotated[str, typer.Option(help="llama3-8b, llama3-70b, llama3-405b or llama3-1t.")] = "llama3-8b",
    scale: Annotated[str, typer.Option(metavar="FRACTION", help="Every tensor shortened to this; 1/64 of llama3-8b is 1.6 GiB.")] = "1",
    mode: Annotated[Mode, typer.Option(help="subset: the first ranks, on one host. default: all of the model.")] = Mode.SUBSET,
    procs: Annotated[int | None, typer.Option(min=1, help="Processes; else 8 of a subset, or as many as the model has ranks.")] = None,
    writes: Annotated[int, typer.Option(min=1, help="Checkpoints to write.")] = 10,
    reads: Annotated[int, typer.Option(min=0, help="Checkpoints to read, cold.")] = 10,
    within: Annotated[int, typer.Option(min=0, help="Checkpoints to write within a training loop, after these.")] = 3,
    interval: Annotated[str, typer.Option(help="Time between checkpoints.")] = "5s",
    tier: Annotated[str | None, typer.Option(help="The posix tier in which a save is durable; else the first.")] = None,
    against: Annotated[Against, typer.Option(help="torch: the same by torch.save and fsync, in turns.")] = Against.TORCH,
    folder: FolderOption = None,
    as_json: JsonFile = None,
    report: PageFile = None,
) -> None:
    """MLPerf Storage's checkpointing workload with real processes as ranks, and what it leaves out: stall, time to each tier, slow-down.

    Example: ckptstore bench checkpoint --model llama3-8b --scale 1/64 --folder /mnt/nvme/scratch
    """
    interval_s = _interval_s(interval)

    def measure(steps: Steps) -> Report:
        from ckptstore_bench.checkpoint.checkpoint_report import checkpoint_report
        from ckptstore_bench.checkpoint.measuring import Run
        from ckptstore_bench.checkpoint.measuring import measure as measure_run
        from ckptstore_bench.checkpoint.ways import STORE, TORCH
        from ckptstore_bench.checkpoint.workload import why_not_comparable, workload
        from ckptstore_bench.scratch import Scratch
        from ckptstore_bench.shape import read_scale

        load = workload(model, mode=mode, processes=procs, scale=read_scale(scale))
        ways = (STORE, TORCH) if against is Against.TORCH else (STORE,)
        asked = Run(load, ways, writes, reads, within, interval_s, tier)
        scratch = Scratch(home=invocation.home, folder=folder)
        name, beside = scratch.beside(tier)
        outcomes = measure_run(asked, scratch, steps)
        settings = {
            "model": model, "scale": scale, "mode": str(mode), "processes": load.processes, "writes": writes, "reads": reads,
            "within": within, "interval_s": interval_s, "fsync": True, "tiers": scratch.described(),
        }  # fmt: skip
        why_not = why_not_comparable(load, mode=mode, writes=writes, reads=reads, interval_s=interval_s)
        return checkpoint_report(asked, outcomes, settings=settings, not_comparable=why_not, tier=name, folder=beside)

    run(invocation, measure, as_json=as_json, page_file=report)


def _interval_s(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise InvalidInput(str(error), operation="bench", subject="--interval") from error
