"""`ckptstore bench interference`: its options. Imports nothing heavy before it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from ckptstore.errors import InvalidInput
from ckptstore_bench.report import Report
from ckptstore_bench.running import FolderOption, JsonFile, PageFile, RoundsOption, Steps, positive_size, run
from ckptstore_client.cli.invocation import Invocation


def interference(
    invocation: Invocation,
    size: Annotated[str, typer.Option(help="Bytes of the training state: weights and Adam's moments.")] = "256MiB",
    steps: Annotated[int, typer.Option(min=2, help="Steps in each phase of each round; half as many alone around it.")] = 60,
    every: Annotated[int, typer.Option(min=1, help="A save before every so many steps.")] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a batch: more make a step longer.")] = 32,
    threads: Annotated[int | None, typer.Option(min=1, help="Cores of the training loop; else as many as torch takes.")] = None,
    phases: Annotated[
        str | None, typer.Option(help="Of saving, guarded, writing and draining; else all, the last where there are two durable tiers.")
    ] = None,
    rounds: RoundsOption = 5,
    folder: FolderOption = None,
    as_json: JsonFile = None,
    report: PageFile = None,
) -> None:
    """How much slower a training loop gets while it saves, and while what it saved is written and drains: mean and p99 of its steps.

    Example: ckptstore bench interference --every 1 --phases guarded
    """
    size_bytes = positive_size(size)

    def measure(progress: Steps) -> Report:
        from ckptstore_bench.interference.measuring import Request
        from ckptstore_bench.interference.measuring import measure as measure_run
        from ckptstore_bench.interference.phases import PHASES

        chosen = None
        if phases is not None:
            named = [part.strip() for part in phases.split(",")]
            if unknown := [name for name in named if name not in PHASES]:
                hint = f"known are {', '.join(PHASES)}"
                raise InvalidInput(f"there is no phase {unknown[0]!r}", operation="bench", subject="--phases", hint=hint)
            chosen = tuple(phase for phase in PHASES if phase in named)
        request = Request(size_bytes, steps, every, batch, threads, rounds, chosen, invocation.home, folder)
        return measure_run(progress, request)

    run(invocation, measure, as_json=as_json, page_file=report)
