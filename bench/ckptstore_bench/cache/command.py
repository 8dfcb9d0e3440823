"""`ckptstore bench cache`: its options, and from them the table. Imports nothing heavy before it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ckptstore_bench.report import Report
from ckptstore_bench.running import JsonFile, PageFile, RoundsOption, Steps, run
from ckptstore_client.cli.invocation import Invocation


def cache(
    invocation: Invocation,
    files: Annotated[int, typer.Option(min=100, help="Files that are read again and again.")] = 3000,
    reads: Annotated[int, typer.Option(min=1000, help="Reads of these files.")] = 60_000,
    rounds: RoundsOption = 5,
    as_json: JsonFile = None,
    report: PageFile = None,
) -> None:
    """How often readers find a file on the node: the cache's policy beside LRU, on skewed reads and on scans.

    Example: ckptstore bench cache --files 10000 --report cache.html
    """

    def measure(steps: Steps) -> Report:
        from ckptstore_bench import machine
        from ckptstore_bench.cache.measure import measure as measure_cache
        from ckptstore_bench.cache.report import build

        contests = measure_cache(files, reads, rounds, steps)
        return build(contests, rounds=rounds, settings={"files": files, "reads": reads}, machine=machine.describe(Path.cwd(), "ckptstore"))

    run(invocation, measure, as_json=as_json, page_file=report)
